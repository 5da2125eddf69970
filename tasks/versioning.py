"""DVC: is a stage up to date, record that it is, and the hash of its inputs."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from recsys.config import InputError
from tasks.project import BusyError

CACHED = "Cached"


def _dvc(*arguments: str) -> str:
    """Run one DVC command and return what it prints."""
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        is_busy = "acquire lock" in result.stderr
        raise (BusyError if is_busy else InputError)(f"dvc {' '.join(arguments)}: {reason}")
    return result.stdout


def is_current(stage: str) -> bool:
    """Whether the stage's code, inputs, parameters and outputs are those of dvc.lock."""
    return not json.loads(_dvc("status", "--json", stage) or "{}") and _is_locked(stage)


@task(task_run_name="check {stage}")
def check_stage(stage: str) -> State:
    """A completed state whose name is ``Cached`` if the stage may be skipped.

    A stage whose outputs were deleted but lie in DVC's cache is brought back from it.
    """
    if not is_current(stage) and _is_locked(stage):
        _restore(stage)
    if is_current(stage):
        return Completed(name=CACHED, message=f"{stage} is up to date")
    return Completed(message=f"{stage} has to run")


@task(task_run_name="commit {stage}")
def commit_stage(stage: str) -> None:
    """Write the stage's inputs and outputs to dvc.lock and DVC's cache."""
    _dvc("commit", "--force", "--quiet", stage)


def output_version(path: Path) -> str:
    """The DVC hash of an output that an earlier stage has committed; ``"uncommitted"`` if none
    has."""
    for stage in _lock().values():
        for out in stage.get("outs", []):
            if out["path"] == path.as_posix():
                return out["md5"]
    return "uncommitted"


def code_version() -> str:
    """The Git commit, ``-dirty`` if files differ from it, or ``"no-git"``."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "no-git"


def _restore(stage: str) -> None:
    """Bring the stage's outputs back from DVC's cache where it has them."""
    subprocess.run(
        [sys.executable, "-m", "dvc", "checkout", "--quiet", stage],
        capture_output=True,
        text=True,
        check=False,
    )


def _lock() -> dict[str, dict]:
    path = Path("dvc.lock")
    return (yaml.safe_load(path.read_text()) or {}).get("stages", {}) if path.is_file() else {}


def _is_locked(stage: str) -> bool:
    return stage in _lock()
