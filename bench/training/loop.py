"""The loop that every contender is timed in: read a batch, step on it; what was waited for the
reader apart."""

import itertools
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Any

from recsys.data.schema import Window
from recsys.training import ranks
from recsys.units import BYTES_PER_GIB

WARM_UP_STEPS = 3
BYTES_PER_KIB = 2**10


@dataclass(frozen=True)
class Contest:
    """A contender, ready to train: its batches of a window, a loss for each of some batches, the
    rows a global batch.

    ``batches`` reads ahead where the contender does; ``train`` takes what it gives, or part of it.
    """

    windows: Sequence[Window]
    batches: Callable[[Window], Iterator[Any]]
    train: Callable[[Iterator[Any]], Iterator[float]]
    batch_size: int


def measure(contest: Contest, seconds: float, least_steps: int) -> dict[str, float]:
    """Warm up, time the loop, then time the reader alone; called by every rank.

    Returns:
        samples, seconds, waited (for the reader, in ``seconds``), cpu (seconds of all ranks),
        reader (seconds per sample, alone) and first_loss (before any step: the same for contenders
        that start from the same weights).
    """
    warm = [_timed(contest, batch) for batch in _some(contest, WARM_UP_STEPS)]
    steps = ranks.broadcast(max(least_steps, math.ceil(seconds / warm[-1][0])))
    started = process_time()
    samples, elapsed, waited = _train(contest, steps)
    used = ranks.means([process_time() - started])[0] * ranks.world_size()
    read = [_read(contest, window) for window in contest.windows]
    return {
        "samples": samples,
        "seconds": elapsed,
        "waited": waited,
        "cpu": used,
        "reader": sum(read) / sum(window.rows for window in contest.windows),
        "first_loss": ranks.means([warm[0][1]])[0],
    }


def _some(contest: Contest, count: int) -> Iterator[Any]:
    endless = itertools.chain.from_iterable(
        contest.batches(window) for window in itertools.cycle(contest.windows)
    )
    return itertools.islice(endless, count)


def _timed(contest: Contest, batch: Any) -> tuple[float, float]:
    """Seconds and loss of one step."""
    started = perf_counter()
    (loss,) = contest.train(iter([batch]))
    return perf_counter() - started, loss


def _with_waits(batches: Iterator[Any], waits: list[float]) -> Iterator[Any]:
    """``batches``; the seconds that each was waited for go to ``waits``."""
    while True:
        started = perf_counter()
        batch = next(batches, None)
        waits.append(perf_counter() - started)
        if batch is None:
            return
        yield batch


def _train(contest: Contest, steps: int) -> tuple[int, float, float]:
    """Samples, seconds and the part of them spent waiting; an unused part of the last window is not
    charged."""
    samples, elapsed, waited = 0, 0.0, 0.0
    for window in itertools.cycle(contest.windows):
        waits: list[float] = []
        used = 0
        started = perf_counter()
        batches = itertools.islice(_with_waits(contest.batches(window), waits), steps)
        for _ in contest.train(batches):
            used += min(contest.batch_size, window.rows - used)
            steps -= 1
        mark = perf_counter()
        opening = waits[0] - median(waits[1:] or [0.0])
        spare = opening * (1 - used / window.rows)
        samples += used
        elapsed += mark - started - spare
        waited += sum(waits) - spare
        if steps == 0:
            break
    return samples, elapsed, waited


def _read(contest: Contest, window: Window) -> float:
    started = perf_counter()
    for _ in contest.batches(window):
        pass
    return perf_counter() - started


def peak_gib() -> float:
    """Largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIB / BYTES_PER_GIB
