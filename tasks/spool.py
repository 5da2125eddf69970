"""Records for MLflow, kept on disk until delivered: whole entries, in order, each once.

An entry is a folder in ``SPOOL`` with a JSON file and copies of its artifacts, so that it stays the
same whenever it is sent.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from recsys.config import InputError
from recsys.files import flush_folder, in_one_line, read_json, write_atomically, write_durably

logger = logging.getLogger(__name__)
T = TypeVar("T")
SPOOL = Path(".tracking")
ENTRY_NAME = re.compile(r"\d{20}-[0-9a-f]{32}")  # time of creation in ns, and a unique id
RECORD_FILE, COPIES_DIR = "record.json", "artifacts"
LOCK_FILE, OPEN_DIR = "delivering.lock", "open"
DAMAGED_SUFFIX, REFUSED_SUFFIX, PARTIAL_SUFFIX = ".damaged", ".refused", ".partial"


class RefusedError(Exception):
    """MLflow will never take this entry, but may take those after it."""


def put(content: Mapping[str, Any], artifacts: Mapping[str, str] | None = None) -> Path:
    """Add an entry, atomically.

    Args:
        artifacts: local files and folders to copy, each with its folder in the run; missing ones
            are left out.
    """
    SPOOL.mkdir(exist_ok=True)
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
    partial = SPOOL / f"{name}.{os.getpid()}{PARTIAL_SUFFIX}"
    partial.mkdir()
    copies = []
    for number, (local, folder) in enumerate((artifacts or {}).items()):
        path, copy = Path(local), partial / COPIES_DIR / str(number) / Path(local).name
        if path.is_dir():
            shutil.copytree(path, copy)
        elif path.is_file():
            copy.parent.mkdir(parents=True)
            shutil.copy(path, copy)
        else:
            continue
        copies.append([copy.relative_to(partial).as_posix(), folder])
    write_durably(partial / RECORD_FILE, json.dumps({**content, "copies": copies}))
    partial.rename(SPOOL / name)
    flush_folder(SPOOL)
    return SPOOL / name


def waiting() -> list[Path]:
    """The entries, oldest first."""
    if not SPOOL.is_dir():
        return []
    return sorted(path for path in SPOOL.iterdir() if ENTRY_NAME.fullmatch(path.name))


def deliver(parse: Callable[[dict[str, Any], Path], T], send: Callable[[T], None]) -> None:
    """Send the entries, oldest first, and remove each once MLflow has taken it.

    Only one process does this at a time; others return at once. An entry that is damaged or refused
    for good is set aside, and the rest continue.

    Args:
        parse: turns an entry's content and folder (to which the paths in ``copies`` are relative)
            into what is sent; raises TypeError, KeyError or ValueError if it cannot.
        send: must add nothing when given the same entry a second time.

    Raises:
        Exception: whatever ``send`` raises except :class:`RefusedError`; the entry stays.
    """
    while waiting():  # again: a process that came while the lock was held has left its entry here
        with _lock() as mine:
            if not mine:
                return
            _remove_partial()
            for entry in waiting():
                try:
                    content = parse(dict(read_json(entry / RECORD_FILE)), entry)
                except (InputError, FileNotFoundError, TypeError, KeyError, ValueError) as error:
                    _set_aside(entry, DAMAGED_SUFFIX, f"is damaged ({in_one_line(error)})")
                    continue
                try:
                    send(content)
                except RefusedError as error:
                    _set_aside(entry, REFUSED_SUFFIX, f"is refused by MLflow ({error})")
                    continue
                done = entry.with_name(f"{entry.name}.{os.getpid()}{PARTIAL_SUFFIX}")
                entry.rename(done)  # renamed first: a half-removed entry would look damaged
                shutil.rmtree(done, ignore_errors=True)


def _set_aside(entry: Path, suffix: str, why: str) -> None:
    aside = entry.with_name(entry.name + suffix)
    entry.rename(aside)
    logger.warning("%s %s and is set aside", aside, why)


def open_run(key: str) -> None:
    """Note that this process has an open run."""
    (SPOOL / OPEN_DIR).mkdir(parents=True, exist_ok=True)
    write_atomically(SPOOL / OPEN_DIR / key, json.dumps(_this_process()).encode())


def close_run(key: str) -> None:
    """Note that the run has ended."""
    (SPOOL / OPEN_DIR / key).unlink(missing_ok=True)


def lost_runs() -> list[str]:
    """Open runs whose process no longer exists."""
    folder = SPOOL / OPEN_DIR
    lost = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            owner = read_json(path)
            if not is_alive(owner["process"], owner["started"]):
                lost.append(path.name)
        except (InputError, FileNotFoundError, TypeError, KeyError):
            continue  # ended meanwhile, or about to be written
    return lost


def is_alive(process: int, started: float) -> bool:
    """Whether the process that started at ``started`` (seconds since 1970) still exists."""
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return False


def _this_process() -> dict[str, float]:
    return {"process": os.getpid(), "started": psutil.Process().create_time()}


@contextmanager
def _lock() -> Iterator[bool]:
    """Hold the delivery lock for the block, if it is free; yields whether this process holds it."""
    with (SPOOL / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _remove_partial() -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in SPOOL.glob(f"*{PARTIAL_SUFFIX}"):
        if path.is_dir() and not psutil.pid_exists(int(path.name.split(".")[-2])):
            shutil.rmtree(path, ignore_errors=True)
