"""The constants of recsys/towers/step_costs.py, fitted on some runs of bench/towers/speed.py; what
it predicts for all."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import least_squares, nnls

from bench.towers.cases import (
    COMMUNICATION,
    GLOBAL_BATCH,
    SCHEMA,
    Architecture,
    Contender,
    contenders,
)
from bench.towers.runs import Run
from recsys.models.factory import build_ranker
from recsys.towers.advice import Wire, ranker_work
from recsys.towers.step_costs import (
    Hosts,
    TowerCluster,
    Work,
    flat_imbalance,
    step_time,
    volumes,
)
from recsys.units import GIGA, MS_PER_SECOND

FITTED_CLUSTERS = {("dcn", 2), ("dlrm", 8)}
FITTED_RATES = (100.0, 400.0, None)
# Splits tables by rows inside hosts; the model's flat exchange is of whole tables
LEFT_OUT = "flat, planner"
MS_PER_GB_AT_1_MBIT = 8 * GIGA / 1e6 * MS_PER_SECOND
FIRST_HIDDEN = 0.2  # where the fit starts; without it the model is linear
SMALLEST = 1e-3
TYPICAL_ERROR = 0.1
WIRE = Wire(COMMUNICATION.forward, COMMUNICATION.backward, COMMUNICATION.gradients)
UNITS = {
    "compute": "ms a GFLOP and core",
    "step": "ms per rank and core",
    "copies": "ms a GB and core",
    "inside": "ms a GB and core",
    "link": "of the time that the bytes take at the rate",
    "message": "ms per core",
    "hidden": "of the time that a rank computes, times 1 - cores / ranks",
}


@dataclass(frozen=True)
class Fitted:
    """Costs by the names of UNITS; ``cores`` are shared by all ranks."""

    costs: dict[str, float]
    cores: int

    def cluster(self, hosts: Hosts, rate_mbit: float | None) -> TowerCluster:
        """The hosts as the model sees them: a rank has its part of the cores, and of its host's
        link."""
        share, costs = hosts.ranks / self.cores, self.costs
        link = costs["link"] * MS_PER_GB_AT_1_MBIT / rate_mbit if rate_mbit else 0.0
        return TowerCluster(
            ranks_per_host=hosts.ranks_per_host,
            compute_tflops=_inverse(share * costs["compute"]),
            step_ms=share * costs["step"],
            copy_gb_s=MS_PER_SECOND * _inverse(share * costs["copies"]),
            inside_gb_s=MS_PER_SECOND * _inverse(share * costs["inside"]),
            across_gb_s=MS_PER_SECOND * _inverse(hosts.ranks_per_host * link),
            reduce_gb_s={
                hosts.ranks: MS_PER_SECOND * _inverse(link)
            },  # a ring crosses each link once
            message_ms=share * costs["message"],
            hidden=costs["hidden"] * max(1 - self.cores / hosts.ranks, 0.0),
            source="bench/towers/fit.py",
        )

    def predict(self, run: Run) -> float:
        """Milliseconds of a step."""
        hosts = Hosts(run.hosts, run.ranks_per_host)
        return step_time(work_of(run), hosts, self.cluster(hosts, run.rate_mbit)).total


def is_fitted(run: Run) -> bool:
    """Whether the constants were fitted on this run."""
    return (run.architecture, run.hosts) in FITTED_CLUSTERS and run.rate_mbit in FITTED_RATES


def fit(used: list[Run], cores: int) -> Fitted:
    """The constants, none below 0, with the smallest squared relative error over ``used``.

    Raises:
        ValueError: there is no run to fit on (scipy's nnls would free memory twice).
    """
    if not used:
        raise ValueError("no runs to fit the cost model on")
    measured = np.array([run.step_ms for run in used])
    rows = np.array([terms(run, cores) for run in used]) / measured[:, None]
    linear, _ = nnls(rows, np.ones(len(used)))  # nothing hidden: a sum of products

    def errors(costs: np.ndarray) -> np.ndarray:
        trial = Fitted(dict(zip(UNITS, map(float, costs), strict=True)), cores)
        return np.array([trial.predict(run) for run in used]) / measured - 1

    start = np.maximum(np.append(linear, FIRST_HIDDEN), SMALLEST)
    best = least_squares(
        errors, start, bounds=(0, np.inf), x_scale=start, loss="soft_l1", f_scale=TYPICAL_ERROR
    )
    return Fitted(dict(zip(UNITS, map(float, best.x), strict=True)), cores)


def predicted_by_others(runs: list[Run], cores: int, part: Callable[[Run], object]) -> list[float]:
    """Milliseconds of each of ``runs``, by constants fitted on those of another ``part`` (cluster,
    rate); nothing where all are of one part."""
    parts = {part(run) for run in runs}
    if len(parts) < 2:
        return []
    fits = {value: fit([run for run in runs if part(run) != value], cores) for value in parts}
    return [fits[part(run)].predict(run) for run in runs]


def modelled(runs: list[Run]) -> list[Run]:
    """Those that the model describes."""
    return [run for run in runs if run.contender != LEFT_OUT]


def terms(run: Run, cores: int) -> list[float]:
    """What each of UNITS but the last is counted in, of one run: with nothing hidden a step is
    their products."""
    work, hosts = work_of(run), Hosts(run.hosts, run.ranks_per_host)
    moved, share = volumes(work, hosts), hosts.ranks / cores
    busiest = (
        flat_imbalance(work.features, hosts.ranks) if work.output_width is None else work.imbalance
    )
    across = busiest * moved.outputs_across + (0.0 if work.ids_ahead else moved.ids_across)
    inside = moved.outputs_inside + (0.0 if work.ids_ahead else moved.ids_inside)
    link = hosts.ranks_per_host * across + moved.shared_gradients
    return [
        share * work.batch * work.flops / GIGA,
        share,
        share * moved.copied / GIGA,
        share * (inside + moved.tower_gradients) / GIGA,
        link / GIGA * MS_PER_GB_AT_1_MBIT / run.rate_mbit if run.rate_mbit else 0.0,
        share * moved.messages,
    ]


def work_of(run: Run) -> Work:
    """What a rank does in a step of ``run``."""
    return _work(run.architecture, run.contender, run.hosts, run.hosts * run.ranks_per_host)


@cache
def _work(architecture: Architecture, contender: str, hosts: int, ranks: int) -> Work:
    found: Contender = next(one for one in contenders(architecture) if one.name == contender)
    ranker = build_ranker(SCHEMA, found.settings(), found.partition(hosts), 0, "meta")
    return ranker_work(ranker, GLOBAL_BATCH // ranks, WIRE, found.overlap)


def _inverse(value: float) -> float:
    return 1 / value if value else math.inf
