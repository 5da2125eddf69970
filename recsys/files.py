"""Files: atomic writing, checksums, locks and links."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.config import InputError

PARTIAL_SUFFIX = ".partial"
SUMS_FILE = "sums.json"
_hashes: dict[tuple[int, ...], str] = {}  # of files that this process has hashed, by file state


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it: it is complete or absent, even after a
    power cut."""
    partial = partial_path(path)
    with partial.open("wb") as file:
        file.write(content)
    publish_file(partial, path)


def partial_path(path: Path) -> Path:
    """A temporary name that no other writer of ``path`` uses; removes what killed writers left."""
    for left in path.parent.glob(f"{path.name}.*{PARTIAL_SUFFIX}"):
        if not Path(f"/proc/{left.name.split('.')[-2]}").exists():
            left.unlink(missing_ok=True)
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")


def publish_file(partial: Path, path: Path) -> None:
    """Rename ``partial`` to ``path`` once its content is on disk."""
    flush_file(partial)
    partial.rename(path)
    flush_folder(path.parent)


def write_durably(path: Path, text: str) -> None:
    """Write ``text`` and wait until it is on disk."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def flush_file(path: Path) -> None:
    """Wait until the content of ``path`` is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` with sorted keys; NaN and infinities become null."""
    path.write_text(json.dumps(finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # also bytes that are not UTF-8
        raise InputError(f"{path}: not JSON: {error}") from error


def in_one_line(error: BaseException) -> str:
    """The message of ``error`` in one line, or its type if it has no message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def damaged(path: Path, remedy: str, error: BaseException) -> InputError:
    """The error to raise if the content of ``path`` is wrong; ``remedy`` is the command that
    rebuilds it."""
    return InputError(f"{path}: is damaged ({in_one_line(error)}); rebuild it with {remedy}")


def finite(value: Any) -> Any:
    """``value`` with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class UnreachableError(InputError):
    """A file store does not answer; another try may succeed."""


class BusyError(InputError):
    """Another process holds a lock; another try may succeed."""


@contextmanager
def locked(path: Path, doing: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``; it is released when this process ends, in any way.

    Args:
        doing: what this process does while it holds the lock; written to the file, with process and
            time, for whoever finds it locked.
        shared: allow others that also share to hold it at the same time.

    Raises:
        BusyError: another process holds it; the message names what it does, and since when.
    """
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{path}: {_owner(path)}; wait for it to end") from error
        owner = {"doing": doing, "process": os.getpid(), "host": socket.gethostname()}
        lock.truncate(0)
        lock.write(json.dumps(owner | {"since": time.time()}))
        lock.flush()
        yield


def _owner(path: Path) -> str:
    """The holder of the lock file, in words."""
    try:
        owner = json.loads(path.read_text())
        minutes = max(time.time() - owner["since"], 0.0) / 60
        process = f"process {owner['process']} on {owner['host']}"
        return f"another run is {owner['doing']} ({process}, for {minutes:.1f} minutes)"
    except (ValueError, KeyError, TypeError):  # it has the lock and is about to write the file
        return "another run has just begun"


def known_hash(path: Path) -> str:
    """As :func:`file_hash`, but a file that this process has hashed is hashed again only if its
    device, inode, size or time of change differs."""
    state = path.stat()
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = file_hash(path)
    return _hashes[key]


def check_file(path: Path, digest: str, remedy: str) -> None:
    """Check that a file is unchanged since it was written.

    Args:
        digest: its SHA-256 at that time.
        remedy: the command that rebuilds it.

    Raises:
        InputError: it is missing or has changed.
    """
    if not path.is_file():
        raise InputError(f"{path}: is missing; rebuild it with {remedy}")
    if known_hash(path) != digest:
        raise InputError(
            f"{path}: is damaged or from another run (its SHA-256 differs from the one noted when "
            f"it was written); rebuild it with {remedy}"
        )


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file in ``folder`` to its sums.json."""
    own = folder / SUMS_FILE
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != own)
    sums = {path.relative_to(folder).as_posix(): known_hash(path) for path in files}
    write_json(folder / SUMS_FILE, sums)


def check_sums(folder: Path, remedy: str) -> None:
    """Check each file that the folder's sums.json names; a folder without one is not checked.

    Raises:
        InputError: as :func:`check_file`, or sums.json itself is damaged.
    """
    path = folder / SUMS_FILE
    if not path.is_file():
        return
    try:
        sums = dict(read_json(path))
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged; rebuild it with {remedy}") from error
    for name, digest in sums.items():
        check_file(folder / name, digest, remedy)


def folder_state(folder: Path) -> list[tuple[str, int, int]]:
    """(path, bytes, ns of the last change) of each file: a cheap indication of its contents."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat()) for path in files]
    return [(path.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns) for path, s in stats]


def fingerprint(*parts: Any) -> str:
    """A name for a run that these plain values decide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:16]


def link_files(source: Path, target: Path) -> None:
    """Put ``source``'s files into ``target``, as hard links if the file system supports them."""
    shutil.copytree(source, target, copy_function=link_file, dirs_exist_ok=True)


def link_file(source: str, target: str) -> None:
    """Make a hard link if the file system supports it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
