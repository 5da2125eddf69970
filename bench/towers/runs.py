"""What bench/towers/speed.py has measured."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.towers.cases import FLAT, FLAT_WHOLE, Architecture

RUNS = Path(".work/towers_speed")
PAPER_EXPOSED = 0.275  # of the flat step, DCN on 64 H100: the paper's Figure 1


@dataclass(frozen=True)
class Run:
    """One contender at one rate: the median over the steps of all turns, of each the slowest rank.

    ``busy_ms`` is processor time of all ranks per step; ``blocked_ms`` how long a rank sleeps in
    collectives per step, the mean over ranks; ``host_bytes`` what the busiest host sends per step,
    by its interface's counter.
    """

    architecture: Architecture
    hosts: int
    ranks_per_host: int
    contender: str
    rate_mbit: float | None
    step_ms: float
    spread_ms: tuple[float, float]
    busy_ms: float
    blocked_ms: float
    host_bytes: float

    @property
    def cluster(self) -> tuple[Architecture, int]:
        """What was measured in the same processes."""
        return self.architecture, self.hosts


def load_runs(folder: Path = RUNS) -> list[Run]:
    """All runs that are kept."""
    return [
        Run(**values)
        for path in sorted(folder.glob("*-*.json"))
        for values in json.loads(path.read_text())
    ]


def save_runs(name: str, runs: list[Run]) -> None:
    """Keep ``runs``, in place of those of the same name."""
    (RUNS / f"{name}.json").write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")


def at(runs: list[Run], like: Run, contender: str) -> Run:
    """The run of ``contender`` in the same place."""
    return next(
        run
        for run in runs
        if (*run.cluster, run.rate_mbit, run.contender)
        == (*like.cluster, like.rate_mbit, contender)
    )


def baseline(runs: list[Run], like: Run) -> Run:
    """The faster of the two flat plans in the same place."""
    return min((at(runs, like, name) for name in (FLAT, FLAT_WHOLE)), key=lambda run: run.step_ms)


def unlimited(runs: list[Run], like: Run) -> Run:
    """The same contender where nothing limits the links."""
    return next(
        run
        for run in runs
        if (*run.cluster, run.rate_mbit, run.contender) == (*like.cluster, None, like.contender)
    )


def operating_rate(flat_ms: dict[float | None, float]) -> float:
    """Mbit/s at which PAPER_EXPOSED of the flat step is exposed; between the rates measured, linear
    in 1/rate."""
    free = flat_ms[None]
    points = sorted((ms, 1 / rate) for rate, ms in flat_ms.items() if rate is not None)
    times, inverses = zip(
        (free, 0.0), *((ms, inverse) for ms, inverse in points if ms > free), strict=True
    )
    return round(1 / float(np.interp(free / (1 - PAPER_EXPOSED), times, inverses)), 1)


def step_ms_at(by_rate: dict[float | None, float], rate_mbit: float) -> float:
    """A step between the rates measured, linear in 1/rate."""
    points = sorted((0.0 if rate is None else 1 / rate, ms) for rate, ms in by_rate.items())
    inverses, times = zip(*points, strict=True)
    return float(np.interp(1 / rate_mbit, inverses, times))
