"""DVC: which stages are up to date, recording that they are, and the hashes of their outputs."""

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from recsys.config import InputError
from recsys.files import BusyError, in_one_line
from tasks.code import CODE_STAGE, write_code

PIPELINE_FILE, LOCK_FILE = Path("dvc.yaml"), Path("dvc.lock")


@contextmanager
def _dvc(doing: str) -> Iterator[Any]:
    """The DVC project in this folder, for ``doing`` something.

    It runs in this process: a run asks sixteen times, and a separate command spends a second
    importing DVC each time.

    Raises:
        BusyError: another process is using the DVC project.
        InputError: DVC reports an error.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # no log lines of its own
    try:
        with Repo() as project:
            yield project
    except (DvcException, OSError) as error:
        kind, reason = BusyError if isinstance(error, LockError) else InputError, in_one_line(error)
        if "is not a git repository" in reason:
            reason += "; run git init, or dvc config --local core.no_scm true"
        raise kind(f"dvc {doing}: {reason}") from error


def settled_stages(*stages: str) -> set[str]:
    """As :func:`stale_stages`, after two cheap steps: bringing the code stage up to date, and
    restoring deleted outputs that are in DVC's cache.

    Raises:
        InputError: as :func:`tasks.code.write_code`, or DVC reports an error.
    """
    write_code()
    targets = (CODE_STAGE, *stages) if stages else ()
    changes = _changes(*targets)
    if CODE_STAGE in changes or CODE_STAGE not in _lock():
        commit_stage(CODE_STAGE)  # its outputs must exist before the other stages are checked
        changes.pop(CODE_STAGE, None)
    deleted = [stage for stage in changes if _lacks_outputs(changes[stage]) and stage in _lock()]
    if deleted:
        _restore(*deleted)
    return stale_stages(*stages) if deleted else _stale(changes, stages)


def stale_stages(*stages: str) -> set[str]:
    """Those of ``stages`` (none given: all) whose code, inputs, parameters or outputs differ from
    dvc.lock. Stages after them may become stale once these have run."""
    if stages and _lock().keys().isdisjoint(stages):  # a first run: DVC need not be asked
        return set(stages)
    return _stale(_changes(*stages), stages)


def commit_stage(stage: str) -> None:
    """Write the stage's inputs and outputs to dvc.lock and DVC's cache."""
    with _dvc(f"commit {stage}") as project:
        project.commit(stage, force=True)


def output_version(path: Path) -> str:
    """The DVC hash of a committed stage's output; ``"uncommitted"`` if no stage has committed
    it."""
    for stage in _lock().values():
        for out in stage.get("outs", []):
            if out["path"] == path.as_posix():
                return out["md5"]
    return "uncommitted"


def output_hashes() -> dict[str, str]:
    """The DVC hash of each committed output, except those of the code stage."""
    return {
        out["path"]: out["md5"]
        for name, stage in _lock().items()
        for out in stage.get("outs", [])
        if name != CODE_STAGE
    }


def used_parameters() -> dict[str, Any]:
    """The settings with which the committed stages ran, by file of params/."""
    used: dict[str, Any] = {}
    for stage in _lock().values():
        for path, values in stage.get("params", {}).items():
            used.setdefault(Path(path).stem, {}).update(values)
    return used


def code_version() -> str:
    """The Git commit, ``-dirty`` if files differ from it, or ``"no-git"``."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "no-git"


def git_commit() -> str:
    """The full Git commit hash; empty if there is none."""
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() if result.returncode == 0 else ""


def _changes(*stages: str) -> dict[str, Any]:
    """What DVC reports as changed, by stage: ``[{"changed deps": {path: how}}, "changed
    command"]``."""
    _lock()  # checked first: DVC's own error does not name the file
    with _dvc("status") as project:
        return project.status(targets=list(stages) or None)


def _stale(changes: dict[str, Any], stages: tuple[str, ...]) -> set[str]:
    asked = stages or yaml.safe_load(PIPELINE_FILE.read_text())["stages"]
    return {stage for stage in asked if stage in changes or stage not in _lock()}


def _lacks_outputs(changes: list[Any]) -> bool:
    found = [
        one["changed outs"]
        for one in changes
        if isinstance(one, dict) and len(one) == 1 and "changed outs" in one
    ]
    return any(how == "deleted" for outputs in found for how in outputs.values())


def _restore(*stages: str) -> None:
    """Restore the stages' outputs from DVC's cache where it has them."""
    with suppress(InputError), _dvc("checkout") as project:
        project.checkout(targets=list(stages))


def _lock() -> dict[str, dict]:
    """The stages in dvc.lock.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return dict((yaml.safe_load(LOCK_FILE.read_bytes()) or {}).get("stages", {}))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{LOCK_FILE}: is damaged ({in_one_line(error)}); bring it back from Git, or remove it "
            f"and run dvc repro"
        ) from error
