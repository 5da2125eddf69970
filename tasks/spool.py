"""What MLflow is to be told, on disk until it has it: whole entries, in order, delivered once.

An entry is a folder of ``SPOOL`` with a JSON file and copies of the artifacts that belong to it, so
that it says the same whenever it is sent.
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
ENTRY_NAME = re.compile(r"\d{20}-[0-9a-f]{32}")  # when it was made, in ns, and which it is
RECORD_FILE, COPIES_DIR = "record.json", "artifacts"
LOCK_FILE, OPEN_DIR = "delivering.lock", "open"
DAMAGED_SUFFIX, REFUSED_SUFFIX, PARTIAL_SUFFIX = ".damaged", ".refused", ".partial"


class RefusedError(Exception):
    """An entry that will never be taken; those after it may be."""


def put(content: Mapping[str, Any], artifacts: Mapping[str, str] | None = None) -> Path:
    """Add an entry; it is there as a whole or not at all.

    Args:
        artifacts: local files and folders, which are copied, each with its folder in the run; one
            that is not there is left out.
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
    """Send the entries, oldest first, and remove each once it is taken.

    One process does so at a time: another one leaves it to that one. An entry that is damaged, or
    that is refused for good, is set aside, and those after it go on.

    Args:
        parse: makes of an entry's content and its folder, to which the paths of ``copies`` are
            relative, what is sent; raises TypeError, KeyError or ValueError where it cannot.
        send: one that is given an entry a second time must add nothing.

    Raises:
        Exception: whatever ``send`` raises, but :class:`RefusedError`; the entry stays.
    """
    while waiting():  # again: who came while the lock was held has left its entry here
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
                entry.rename(done)  # at once: half of a removed entry would be a damaged one
                shutil.rmtree(done, ignore_errors=True)


def _set_aside(entry: Path, suffix: str, why: str) -> None:
    aside = entry.with_name(entry.name + suffix)
    entry.rename(aside)
    logger.warning("%s %s and is set aside", aside, why)


def open_run(key: str) -> None:
    """Note that this process has a run that goes on."""
    (SPOOL / OPEN_DIR).mkdir(parents=True, exist_ok=True)
    write_atomically(SPOOL / OPEN_DIR / key, json.dumps(_this_process()).encode())


def close_run(key: str) -> None:
    """The run is ended."""
    (SPOOL / OPEN_DIR / key).unlink(missing_ok=True)


def lost_runs() -> list[str]:
    """The runs that go on whose process has gone."""
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
    """Whether the process that began at ``started`` (seconds since 1970) is still there."""
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return False


def _this_process() -> dict[str, float]:
    return {"process": os.getpid(), "started": psutil.Process().create_time()}


@contextmanager
def _lock() -> Iterator[bool]:
    """Whether this process is the one that delivers; until the block ends, however it ends."""
    with (SPOOL / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _remove_partial() -> None:
    """Remove what a killed process has left half-written, or half-removed."""
    for path in SPOOL.glob(f"*{PARTIAL_SUFFIX}"):
        if path.is_dir() and not psutil.pid_exists(int(path.name.split(".")[-2])):
            shutil.rmtree(path, ignore_errors=True)
