"""Why ranks failed: the files they leave, and the single error that the user sees."""

import errno
import os
import pickle
import signal
import time
import traceback
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from recsys.config import InputError
from recsys.training.non_finite import NonFiniteError

FAILURE_SUFFIX = ".failure"
RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"
LASTING = (InputError, NonFiniteError)  # a restart fixes neither input nor data
MEMORY_HINT = (
    "; unless somebody did it by hand, the machine ran out of memory: "
    "lower world_size or use smaller tables"
)
# Gloo's messages, in a plain RuntimeError, when the process at the other end is gone.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
)


class LostRankError(Exception):
    """A rank disappeared or hung without an error of its own."""


class RankKilledError(LostRankError):
    """A rank's process was killed from outside."""


class HungRankError(LostRankError):
    """A rank made no progress within ``rank_timeout_s``."""


class LostPeerError(LostRankError):
    """The connection to a rank broke; if that rank is on this node, its own failure is the error to
    report."""


def write_failure(folder: Path, error: BaseException, attempt: int | None = None) -> None:
    """Write ``error`` to ``folder`` for :func:`first_failure`; ``attempt`` None: this rank's
    current one."""
    text = "".join(traceback.format_exception(error))
    attempt = int(os.environ.get(RESTART_COUNT, "0")) if attempt is None else attempt
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_PEER):
        error = LostPeerError(
            f"the connection to another rank broke: {' '.join(str(error).split())}"
        )
    try:
        body = pickle.dumps((time.monotonic(), error, text, attempt))
        pickle.loads(body)
    except Exception:
        body = pickle.dumps(
            (time.monotonic(), RuntimeError(f"{type(error).__name__}: {error}"), text, attempt)
        )
    partial = folder / f"{os.getpid()}-{attempt}"
    partial.write_bytes(body)
    partial.rename(partial.with_suffix(FAILURE_SUFFIX))


def read_failures(folder: Path) -> list[tuple[float, BaseException, str, int]]:
    """(time, exception, traceback, attempt) of each failure, from the files that ranks wrote to
    ``folder``."""
    return [pickle.loads(path.read_bytes()) for path in folder.glob(f"*{FAILURE_SUFFIX}")]


def first_failure(folder: Path, error: ChildFailedError) -> BaseException:
    """Why the last attempt failed: a lasting error, else a hung or killed rank, else the earliest
    error."""
    failures = sorted(read_failures(folder), key=lambda failure: failure[0])
    for _, first, text, _ in failures:
        if isinstance(first, LASTING):
            if not isinstance(first, InputError):
                first.add_note(f"In a rank:\n{text}")
            return first
    last = max((attempt for _, _, _, attempt in failures), default=0)
    failures = [failure for failure in failures if failure[3] == last]
    for _, first, _, _ in failures:
        if isinstance(first, HungRankError):
            return first
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return RankKilledError(
            f"rank {rank} was killed by {name}{MEMORY_HINT if name == 'SIGKILL' else ''}"
        )
    silent = any(one.exitcode == os.EX_IOERR for one in error.failures.values())  # see rank_main
    if silent and all(isinstance(failure[1], LostPeerError) for failure in failures):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
    if not failures:
        return RuntimeError(
            f"rank {rank} ended with exit code {failure.exitcode} and left no message"
        )
    _, first, text, _ = min(failures, key=lambda f: (isinstance(f[1], LostPeerError), f[0]))
    first.add_note(f"In a rank:\n{text}")
    return first
