"""Do the planner's predictions rank plans as the engine's steps do? Kinds x placements on CPU
ranks.

    python -m bench.planner.validation --write
    python -m bench.planner.validation --fit params/hardware/cpu.yaml   # first, on a new machine

``--fit`` sets the hardware file's constants to what the plans of FITTED took on two ranks; the
report is about other models, JUDGED, also on four ranks. Needs a quiet machine: about four minutes
on two cores.
"""

import argparse
from pathlib import Path

import numpy as np
import yaml
from scipy.optimize import least_squares

from bench.planner.cases import FITTED, JUDGED, Model, plans, torchrec_plan
from bench.planner.report import Compared, report_lines, write_report
from bench.planner.worker import measure
from recsys.config import load_settings
from recsys.planning.hardware import Hardware
from recsys.training.launch import run_on_ranks

HARDWARE = Path("params/hardware/cpu.yaml")
WORLD_SIZES = (2, 4)
FREE = ("collective_ms", "shard_ms", "step_ms")
DIGITS = 3
SMALLEST = 0.01  # where the fit starts from at least
FIT_RANKS = (2,)


def compare(
    models: tuple[Model, ...], world_sizes: tuple[int, ...], rounds: int, steps: int, rivals: bool
) -> list[Compared]:
    """Train every plan of ``models`` on each number of ranks."""
    found = []
    for world_size in world_sizes:
        for model in models:
            tried = plans(model, world_size) + (
                [torchrec_plan(model, world_size)] if rivals else []
            )
            measured = run_on_ranks(measure, (model, tried, rounds, steps), world_size, 1)[0]
            found += [
                Compared(model, world_size, one.name, m)
                for one, m in zip(tried, measured, strict=True)
            ]
            print(f"{world_size} ranks, {model.name}: {len(tried)} plans", flush=True)
    return found


def fit(hardware: Hardware, cases: list[Compared]) -> Hardware:
    """``hardware`` with the constants that explain the measured times best, in relative error."""
    measured = np.log([case.measured.ms for case in cases])

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        trial = _with(hardware, np.exp(logarithms))
        return np.log([case.predict(trial).step_ms for case in cases]) - measured

    start = [hardware.intra_gb_s, *(max(getattr(hardware, name), SMALLEST) for name in FREE)]
    best = np.exp(least_squares(residuals, np.log(start), loss="soft_l1").x)
    return _with(hardware, np.array([float(f"{value:.{DIGITS}g}") for value in best]))


def _with(hardware: Hardware, values: np.ndarray) -> Hardware:
    exchange, *rest = (float(value) for value in values)
    exchanges = dict.fromkeys(("intra_gb_s", "cross_gb_s", "reduce_gb_s"), exchange)
    return hardware.model_copy(update={**exchanges, **dict(zip(FREE, rest, strict=True))})


def main() -> None:
    """Measure, fit or judge, print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--fit", type=Path, help="fit this hardware file")
    parser.add_argument(
        "--write", action="store_true", help="write docs/benchmarks/planner_validation.md"
    )
    given = parser.parse_args()
    if given.fit:
        found = fit(
            load_settings(given.fit, Hardware),
            compare(FITTED, FIT_RANKS, given.rounds, given.steps, rivals=False),
        )
        given.fit.write_text(yaml.safe_dump(found.model_dump(), sort_keys=False))
        return
    hardware = load_settings(HARDWARE, Hardware)
    cases = compare(JUDGED, WORLD_SIZES, given.rounds, given.steps, rivals=True)
    print("\n".join(report_lines(cases, hardware)))
    if given.write:
        write_report(cases, hardware)


if __name__ == "__main__":
    main()
