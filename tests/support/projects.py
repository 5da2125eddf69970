"""A copy of the project in a folder of its own, and its commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import prefect_server

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stdout[-4000:] + result.stderr[-8000:]
    return result


def environment(folder: Path) -> dict[str, str]:
    """That of the commands of the project in ``folder``, with a Prefect server that others use
    too."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PREFECT_API_URL": prefect_server.api_url(),
        "PREFECT_HOME": str(folder / ".prefect"),
        "PYTHONPATH": str(folder),
        "PATH": path,
    }


def copy_project(folder: Path) -> Path:
    """Put a copy of the project, with a Git repository of its own, in an empty folder."""
    for name in (
        "flows",
        "tasks",
        "recsys",
        "params",
        "requirements",
        ".dvc",
        "dvc.yaml",
        "prefect.yaml",
        "pyproject.toml",
        ".dvcignore",
        ".gitignore",
    ):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(
            source, folder / name
        )
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder
