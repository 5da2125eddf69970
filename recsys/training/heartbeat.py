"""Detect hung ranks: each rank has a monitor thread which reports that the main thread makes
progress.

Progress is measured as CPU time of the main thread, so the training loop does not have to report
anything. A rank that sleeps, waits, is stopped by a signal or holds the interpreter's lock falls
silent. One that spins seems to make progress; then the ranks that wait for it fall silent, and
their stacks show which one is missing.
"""

import faulthandler
import os
import re
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recsys.training.failures import RESTART_COUNT, HungRankError, write_failure

BEAT_SUFFIX, STACK_SUFFIX = ".beat", ".stack"
# Process id, identity of the main thread, monotonic time of the last progress
RECORD = struct.Struct("qQd")
SAMPLES = 10  # per timeout
LONGEST_INTERVAL_S = 1.0
IDLE_SHARE = 0.001  # of one core; a loop that sleeps uses less, one small batch per second more
STACK_SIGNAL = signal.SIGUSR2
STACK_WAIT_S = 0.5
# Files with the innermost frame of a collective
WAITING = ("/torch/distributed/", "/torchrec/distributed/")
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')
STOPPED, ENDED = "T", "Z"


@dataclass(frozen=True)
class Rank:
    """A rank of this node, according to its last report."""

    attempt: int
    number: int
    process: int
    main_thread: int
    progress_s: float
    state: str

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.attempt}-{self.number}"


def report_progress(folder: Path, timeout_s: float) -> None:
    """Report this rank's progress in ``folder`` as long as the process lives, and its stacks on
    STACK_SIGNAL."""
    name = f"{os.environ.get(RESTART_COUNT, '0')}-{os.environ['RANK']}"
    main = threading.main_thread().ident
    assert main is not None
    clock, interval = time.pthread_getcpuclockid(main), _interval(timeout_s)
    faulthandler.register(STACK_SIGNAL, file=(folder / f"{name}{STACK_SUFFIX}").open("w"))
    descriptor = os.open(folder / f"{name}{BEAT_SUFFIX}", os.O_WRONLY | os.O_CREAT)

    def monitor() -> None:
        used_before = -interval
        while True:
            used = time.clock_gettime(clock)
            if used - used_before > IDLE_SHARE * interval:
                os.pwrite(descriptor, RECORD.pack(os.getpid(), main, time.monotonic()), 0)
            used_before = used
            time.sleep(interval)

    threading.Thread(target=monitor, daemon=True).start()


@contextmanager
def watching(folder: Path, timeout_s: float, whole_world: bool) -> Iterator[None]:
    """Kill a hung rank of this node and write a HungRankError to ``folder``.

    ``whole_world`` means that all ranks are on this node. Otherwise, ranks that only wait may wait
    for another node's rank, which that node detects.
    """
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_interval(timeout_s)):
            ranks = _ranks(folder)
            if any(time.monotonic() - rank.progress_s > timeout_s for rank in ranks):
                _end_the_hung_one(folder, ranks, timeout_s, whole_world)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _end_the_hung_one(folder: Path, ranks: list[Rank], timeout_s: float, whole_world: bool) -> None:
    stacks = {rank: _stack(folder, rank) for rank in ranks}
    busy = [rank for rank in ranks if rank.state == STOPPED or not _waits(stacks[rank])]
    if not (busy or whole_world):
        return
    hung = min(busy or ranks, key=lambda rank: (rank.state != STOPPED, rank.progress_s))
    waiting = ", ".join(str(rank.number) for rank in sorted(ranks, key=lambda rank: rank.number))
    what = (
        f"rank {hung.number} hung"
        if busy
        else f"ranks {waiting} wait in collectives for one another"
    )
    error = HungRankError(
        f"{what}: no progress for {timeout_s:g} s (rank_timeout_s); {_place(hung, stacks[hung])}"
    )
    for rank, stack in stacks.items():
        error.add_note(f"Stack of rank {rank.number}:\n{stack or '  (it did not answer)'}")
    write_failure(folder, error, hung.attempt)
    os.kill(hung.process, signal.SIGKILL)
    _forget(folder, ranks)


def _forget(folder: Path, ranks: list[Rank]) -> None:
    for rank in ranks:
        (folder / f"{rank.name}{BEAT_SUFFIX}").unlink(missing_ok=True)


def _place(rank: Rank, stack: str) -> str:
    """What a rank was doing, from its innermost frame."""
    if rank.state == STOPPED:
        return "its process is stopped by a signal"
    frame = FRAME.search(stack)
    if frame is None:
        return "it did not report what it was doing"
    return f"it was in {frame['function']} ({frame['file']}, line {frame['line']})"


def _waits(stack: str) -> bool:
    """Whether the innermost frame is in a collective."""
    frame = FRAME.search(stack)
    return frame is not None and any(part in frame["file"] for part in WAITING)


def _stack(folder: Path, rank: Rank) -> str:
    """The main thread's stack, innermost frame first; empty if unavailable."""
    if rank.state == STOPPED:
        return ""
    path = folder / f"{rank.name}{STACK_SUFFIX}"
    try:
        os.kill(rank.process, STACK_SIGNAL)
    except ProcessLookupError:
        return ""
    deadline, mark = time.monotonic() + STACK_WAIT_S, f"0x{rank.main_thread:016x}"
    while time.monotonic() < deadline:
        time.sleep(STACK_WAIT_S / SAMPLES)
        found = [part for part in path.read_text().split("\n\n") if mark in part.partition("\n")[0]]
        if found:
            return found[-1].partition("\n")[2]
    return ""


def _ranks(folder: Path) -> list[Rank]:
    """The live ranks of the newest attempt."""
    found = []
    for path in folder.glob(f"*{BEAT_SUFFIX}"):
        body = path.read_bytes()
        if len(body) == RECORD.size:
            attempt, number = path.stem.split("-")
            process, main_thread, progress_s = RECORD.unpack(body)
            found.append(
                Rank(int(attempt), int(number), process, main_thread, progress_s, _state(process))
            )
    newest = max((rank.attempt for rank in found), default=0)
    return [rank for rank in found if rank.attempt == newest and rank.state != ENDED]


def _state(process: int) -> str:
    """The letter of a process's state; ENDED if it does not exist."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ENDED


def _interval(timeout_s: float) -> float:
    return min(LONGEST_INTERVAL_S, timeout_s / SAMPLES)
