"""Temporary files of a process, in one folder: what a killed one leaves, the next start removes."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import util
from pathlib import Path

from recsys.config import InputError

PREFIX = "tf-"
LOCK_FILE = "lock"  # held as long as the process of the folder lives
NO_LOCK_S = 3600  # a folder without one is being made, or its process died just then
LAST = -200  # of multiprocessing's finalizers: after its own folder, which lies in ours
# A socket's path has 107 bytes; below TMPDIR are our folder, multiprocessing's and the socket
LONGEST_FOR_SOCKETS = 60
SHORT = Path("/tmp")

_own: dict[Path, tuple[int, Path]] = {}  # process and its folder, by TMPDIR


def scratch(for_sockets: bool = False) -> Path:
    """The folder for temporary files of this process, in TMPDIR; it ends with the process.

    The first call removes the folders of processes of this project that were killed. An advisory
    lock tells which those are, so that no process of another host or container is taken for dead.
    ``for_sockets``: in /tmp where TMPDIR is too long for a socket's path.

    Raises:
        InputError: it cannot be written.
    """
    before, tempfile.tempdir = tempfile.tempdir, None  # in temporary_files_in_scratch it is ours
    base = Path(tempfile.gettempdir())
    tempfile.tempdir = before
    if for_sockets and len(os.fsencode(base)) > LONGEST_FOR_SOCKETS:
        base = SHORT
    process, folder = _own.get(base, (0, base))
    if process == os.getpid() and folder.is_dir():
        return folder
    remove_left_behind(base)
    try:
        folder = _make(base)
    except OSError as error:
        raise InputError(f"TMPDIR: {base}: cannot be written: {error.strerror}") from error
    _own[base] = os.getpid(), folder
    util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=LAST)
    return folder


@contextmanager
def temporary_files_in_scratch(for_sockets: bool = False) -> Iterator[None]:
    """What libraries put into TMPDIR goes into :func:`scratch` in here."""
    folder, before = scratch(for_sockets), tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def remove_left_behind(base: Path) -> None:
    """Remove the folders in ``base`` of processes that are no more; those of other users stay."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):
            lock = folder / LOCK_FILE
            if not lock.exists():
                if time.time() - folder.stat().st_mtime > NO_LOCK_S:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _make(base: Path) -> Path:
    """A new folder whose lock this process holds; made again where another start took it for
    left."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # Open as long as the process lives
        lock = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return folder
        os.close(lock)
