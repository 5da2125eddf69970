"""Runs of the slow-network benchmark that took what the cost model says."""

from dataclasses import replace

from bench.towers.cases import RATES_MBIT, SHAPES, contenders
from bench.towers.fit import UNITS, Fitted
from bench.towers.runs import Run

CORES = 2
COSTS = dict(zip(UNITS, (20.0, 5.0, 150.0, 600.0, 1.1, 0.1, 0.3), strict=True))


def runs_of(fitted: Fitted) -> list[Run]:
    """Every run of the benchmark, its time that of the model."""
    found = []
    for shape in SHAPES:
        for architecture, rates in RATES_MBIT.items():
            for rate in rates:
                for one in contenders(architecture):
                    place = architecture, shape.hosts, shape.ranks_per_host, one.name, rate
                    found.append(Run(*place, 1.0, (1.0, 1.0), 1.0, 1.0, 1.0))
    return [replace(run, step_ms=fitted.predict(run)) for run in found]
