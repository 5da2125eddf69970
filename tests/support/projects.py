"""A copy of the project in a folder of its own, and its commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import prefect_server

ROOT = Path(__file__).resolve().parents[2]
CSV_YAML = """
format: table
table:
  files: [log-*.csv]
  file_format: csv
  time: {column: time, unit: s}
  label: clicked
  categorical: [{column: ad, table_rows: 100}]
"""
CSV_LOG = b"time,clicked,ad\n1704070800,0,a\n1704074400,1,b\n"


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


def read_csv_files(project: Path, root: str | Path) -> None:
    """Let the parameters in ``project`` name the CSV files in ``root`` as the log."""
    (project / "params/datasets/mine.yaml").write_text(CSV_YAML)
    settings = project / "params/data.yaml"
    text = settings.read_text().replace("dataset: synthetic", "dataset: mine")
    settings.write_text(text.replace("root: params/datasets", f"root: {root}"))


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
