"""The loop that every contender is timed in: read a batch, step on it; what was waited for the reader apart."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from recsys.data.schema import Window
from recsys.distill import ranks

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Contest:
    """A contender, ready to train: its batches of a window, a step on a batch, the rows a global batch."""

    windows: Sequence[Window]
    batches: Callable[[Window], Iterator[Any]]
    step: Callable[[Any], float]
    batch_size: int


def measure(contest: Contest, seconds: float, least_steps: int) -> dict[str, float]:
    """Warm up, time the loop, then time the reader alone; called by every rank.

    Returns:
        samples, seconds, waited (for the reader, in ``seconds``), reader (seconds a sample, alone) and
        first_loss (before any step: the same for contenders that start from the same weights).
    """
    warm = [_timed(contest.step, batch) for batch in _some(contest, WARM_UP_STEPS)]
    steps = ranks.broadcast(max(least_steps, math.ceil(seconds / warm[-1][0])))
    samples, elapsed, waited = _train(contest, steps)
    read = [_read(contest, window) for window in contest.windows]
    return {
        "samples": samples,
        "seconds": elapsed,
        "waited": waited,
        "reader": sum(read) / sum(window.rows for window in contest.windows),
        "first_loss": ranks.mean_over_ranks([warm[0][1]])[0],
    }


def _some(contest: Contest, count: int) -> Iterator[Any]:
    endless = itertools.chain.from_iterable(contest.batches(window) for window in itertools.cycle(contest.windows))
    return itertools.islice(endless, count)


def _timed(function: Callable[[Any], float], argument: Any) -> tuple[float, float]:
    started = perf_counter()
    result = function(argument)
    return perf_counter() - started, result


def _train(contest: Contest, steps: int) -> tuple[int, float, float]:
    """Samples, seconds and the part of them spent waiting; an unused part of the last window is not charged."""
    samples, elapsed, waited = 0, 0.0, 0.0
    for window in itertools.cycle(contest.windows):
        waits: list[float] = []
        used = 0
        started = mark = perf_counter()
        for batch in contest.batches(window):
            waits.append(perf_counter() - mark)
            contest.step(batch)
            used += min(contest.batch_size, window.rows - used)
            steps -= 1
            mark = perf_counter()
            if steps == 0:
                break
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
