"""A process's temporary files, in one folder; what a killed process leaves is removed at the next
start."""

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
LOCK_FILE = "lock"  # held as long as the folder's process lives
NO_LOCK_S = 3600  # a newer folder without a lock is just being created
# Priority among multiprocessing's finalizers: after its own folder, which is inside ours
LAST = -200
# A socket's path has at most 107 bytes; below TMPDIR come our folder, multiprocessing's and the
# socket
LONGEST_FOR_SOCKETS = 60
SHORT = Path("/tmp")

_own: dict[Path, tuple[int, Path]] = {}  # process id and its folder, by TMPDIR


def scratch(for_sockets: bool = False) -> Path:
    """The folder in TMPDIR for this process's temporary files; it is removed when the process ends.

    The first call removes the folders of this project's killed processes. These are recognised by
    an advisory lock, so that a process on another host or in another container is not taken for
    dead. With ``for_sockets`` the folder is in /tmp if TMPDIR is too long for a socket's path.

    Raises:
        InputError: it cannot be written.
    """
    # Inside temporary_files_in_scratch it is ours
    before, tempfile.tempdir = tempfile.tempdir, None
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
    """Within the block, libraries' temporary files go into :func:`scratch` instead of TMPDIR."""
    folder, before = scratch(for_sockets), tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def remove_left_behind(base: Path) -> None:
    """Remove the folders in ``base`` whose process no longer exists; those of other users stay."""
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
    """A new folder with a lock held by this process; created again if another start removes it as a
    leftover."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # Stays open as long as the process lives
        lock = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return folder
        os.close(lock)
