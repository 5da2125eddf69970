"""Where the project keeps its files and settings, relative to its root."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.config import InputError
from recsys.files import check_sums, locked, write_sums

PARAMS = Path("params")
WINDOWS = Path("data/windows")
ORACLE = Path("data/oracle")
INGEST_WORK = Path(".work/ingest")  # rows of the log read by an unfinished run
BASELINES = Path("models/baselines")
SCORES = Path("data/scores")
SCORES_WORK = Path(".work/scores")  # the growing score log, and when each segment was scored
WITHDRAWN_FILE = PARAMS / "withdrawn.yaml"
PARTITION = Path("models/partition")
PARTITION_FILE = PARTITION / "partition.json"
TEACHER = Path("models/teacher")
TEACHER_WORK = Path(".work/teacher")  # checkpoints of an unfinished run
STUDENTS = Path("models/students")
STUDENTS_WORK = Path(".work/students")
STUDENTS_KEPT = Path(".work/students-kept")  # the last run's students, by what decides them
EVALUATION = Path("reports/evaluation")
REGISTRATION = Path("reports/registration.json")
STREAM = Path("models/stream")
PUBLISHED = Path("models/published")  # a publication folder per student of the stream
STREAM_WORK = Path(".work/stream")  # a stream's windows and checkpoints, from which it resumes
STREAM_REPORT = Path("reports/stream")
TUNE_WORK = Path(".work/tune")  # studies, and the windows they may read
TUNE_REPORT = Path("reports/tune.md")
MADE_BY = {
    WINDOWS: "ingest",
    ORACLE: "ingest",
    BASELINES: "baselines",
    PARTITION: "partition",
    TEACHER: "teacher",
    SCORES: "augment",
    STUDENTS: "students",
    EVALUATION: "evaluate",
    STREAM: "stream",
}
LOCKS_DIR = Path(".work")
PROJECT_LOCK = "project.lock"  # held by the process that writes results
OLD_SUFFIX = "-old"
_HOST = socket.gethostname()


_held: set[Path] = set()  # lock files that this process holds


def require(*inputs: Path) -> None:
    """Check that a stage's inputs exist and are what earlier stages wrote.

    Raises:
        InputError: one is missing or damaged; the message names it and the command that creates it.
    """
    for path in inputs:
        folder = path if path in MADE_BY else path.parent
        check_sums(folder, f"towerflow {MADE_BY[folder]}")
        if not path.exists():
            raise InputError(
                f"{path}: no such file or folder; run the stages before it first (dvc repro)"
            )


@contextmanager
def only_one(lock_file: str, doing: str, shared: bool = False) -> Iterator[None]:
    """Hold ``lock_file`` while ``doing`` something; do nothing if this process holds it already.

    Raises:
        BusyError: another process holds it; the message names that process and for how long it has
            held the lock.
    """
    path = (LOCKS_DIR / lock_file).absolute()
    if path in _held:
        yield
        return
    LOCKS_DIR.mkdir(exist_ok=True)
    with locked(LOCKS_DIR / lock_file, doing, shared):
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)


@contextmanager
def alone(doing: str, shared: bool = False) -> Iterator[None]:
    """As :func:`only_one`, among everything that writes results of this project.

    Args:
        shared: allow others that also share, such as the nodes of one launch.

    Raises:
        BusyError: another process writes; nothing is written here.
    """
    with only_one(PROJECT_LOCK, doing, shared):
        yield


@contextmanager
def replacing(*targets: Path) -> Iterator[list[Path]]:
    """Give an empty folder for each target; if the block succeeds, move each to its target.

    If it fails, the targets stay as they were and the folders are removed. Folders left by a killed
    run are removed first.
    """
    scratch: list[Path] = []
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(target)
            folder = Path(
                tempfile.mkdtemp(prefix=f".{target.name}-{_HOST}-{os.getpid()}-", dir=target.parent)
            )
            folder.chmod(0o755)
            scratch.append(folder)
        yield scratch
        for folder in scratch:
            write_sums(folder)
        for folder, target in zip(scratch, targets, strict=True):
            old = folder.with_name(f"{folder.name}{OLD_SUFFIX}")
            if target.exists():
                # A reader misses the target only during a rename, not while a large folder is
                # removed
                target.rename(old)
            folder.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        for folder in scratch:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_left_behind(target: Path) -> None:
    """Remove the scratch folders of ``target`` whose process has ended, and restore a target that
    one of them had moved away."""
    # Whether a process on another node has ended cannot be seen from here
    prefix = f".{target.name}-{_HOST}-"
    for folder in target.parent.glob(f"{prefix}*-*"):
        process_id = folder.name.removeprefix(prefix).split("-")[0]
        if process_id.isdigit() and not Path(f"/proc/{process_id}").exists():
            if folder.name.endswith(OLD_SUFFIX) and not target.exists():
                folder.rename(target)
            shutil.rmtree(folder, ignore_errors=True)
