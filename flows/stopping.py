"""Stop a command on Ctrl-C or SIGTERM: print one line, and end everything that it started within
seconds."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LONGEST_S = 8.0  # then whatever has not ended by itself is killed
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(KeyboardInterrupt):
    """The signal ``number`` was received."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """While the block runs, Ctrl-C and SIGTERM raise :class:`Stopped`."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    before = {number: signal.signal(number, _stop) for number in NAMES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_of(error: BaseException) -> int | None:
    """The signal behind ``error``; None if there is none.

    Elastic and Prefect install their own handlers while they run.
    """
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "number", signal.SIGINT)
    by_elastic, by_prefect = getattr(error, "sigval", None), getattr(error, "signal", None)
    found = by_prefect if by_elastic is None else by_elastic
    return int(found) if isinstance(found, int) else None


def end(number: int) -> int:
    """Print that the command was stopped, and return its exit status."""
    print(f"stopped by {NAMES.get(signal.Signals(number), number)}", file=sys.stderr, flush=True)
    _end_late(number)
    return 128 + number


def _stop(number: int, frame: FrameType | None) -> None:
    _end_late(number)
    raise Stopped(number)


def _end_late(number: int) -> None:
    """Kill this process and all its children if it is still alive in a few seconds."""

    def end_all() -> None:
        import psutil

        own = os.getsid(0)
        for child in psutil.Process().children(recursive=True):
            try:
                if os.getsid(child.pid) == own:  # tracking's courier has its own session
                    child.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        os._exit(128 + number)

    timer = threading.Timer(LONGEST_S, end_all)
    timer.daemon = True
    timer.start()
