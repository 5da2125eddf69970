"""What calibration is worth: NE and mean prediction over click rate, before and after, on windows
that the map has not seen.

python -m bench.serving.calibration RUN [RUN ...] --report docs/benchmarks/calibration.md
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bench.shared.report import machine_lines, print_report
from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.evaluation.metrics import entropy
from recsys.evaluation.predictions import PREDICTIONS_DIR
from recsys.evaluation.settings import EvaluateSettings
from recsys.serving.calibrating import FITS, Kind, Predictions, chosen_kind, joined
from recsys.serving.calibration import UNCALIBRATED, CalibrationMap, sigmoid
from recsys.serving.settings import ExportSettings

ARMS, DRAWS, SEED = ("plain", "distilled"), 200, 1
EARLY = 2  # the first window that has one before it whose predictions are of a trained model
Way = tuple[Kind | Literal["auto"], int]  # what is fitted, and on how many windows before
WAYS: list[Way] = [("platt", 1), ("platt", 3), ("platt", 6), ("isotonic", 3), ("auto", 3)]


@dataclass(frozen=True)
class Judged:
    """Of each row of some windows: its user, label, and by way the probability; None: as it is."""

    groups: NDArray[np.int64]
    labels: NDArray[np.float32]
    found: dict[Way | None, NDArray[np.float64]]


def judged(folder: Path, names: Sequence[str], domain: int, of: range) -> Judged:
    """The windows at the places ``of``, each mapped by what was fitted on those before it."""
    frames = [
        pl.read_parquet(folder / PREDICTIONS_DIR / f"{name}.parquet").filter(
            (pl.col("domain") == domain) & pl.col("label").is_not_nan()
        )
        for name in names
    ]
    windows = [
        (one["logit"].to_numpy(), one["label"].to_numpy(), np.ones(one.height, np.float32))
        for one in frames
    ]
    found: dict[Way | None, list[NDArray[np.float64]]] = {None: []}
    for place in of:
        logits = frames[place]["logit"].to_numpy()
        found[None].append(sigmoid(logits))
        for way in WAYS:
            found.setdefault(way, []).append(_fitted(windows[1:place], way)(logits))
    rows = pl.concat([frames[place] for place in of])
    return Judged(
        rows["group"].to_numpy(),
        rows["label"].to_numpy(),
        {way: np.concatenate(parts) for way, parts in found.items()},
    )


def _fitted(past: Sequence[Predictions], way: Way) -> CalibrationMap:
    name, count = way
    known = joined(past[-count:])
    kind: Kind | None = None if name == "auto" else name
    if name == "auto":
        kinds: list[Kind] = ["platt"]
        if len(known[1]) >= ExportSettings().isotonic_rows:
            kinds.append("isotonic")
        kind = chosen_kind(past, kinds, count)
    return UNCALIBRATED if kind is None else FITS[kind](*known)


def ne_differences(seeds: Sequence[Judged]) -> dict[Way, tuple[float, float, float]]:
    """By way NE after less NE before, mean over seeds, and its 95 % interval over users and
    seeds."""
    one = seeds[0]
    _, users = np.unique(one.groups, return_inverse=True)
    count = int(users.max()) + 1
    floor = len(one.labels) * entropy(float(one.labels.mean()))
    before = [_losses(seed, None) for seed in seeds]
    by_user = np.array(
        [
            [
                np.bincount(users, _losses(seed, way) - base, count) / floor
                for seed, base in zip(seeds, before, strict=True)
            ]
            for way in WAYS
        ]
    )  # [ways, seeds, users]
    draw = np.random.default_rng(SEED)
    means = np.empty((DRAWS, len(WAYS)))
    for place in range(DRAWS):
        weights = np.bincount(draw.integers(count, size=count), minlength=count)
        drawn = draw.integers(len(seeds), size=len(seeds))
        means[place] = (by_user @ weights)[:, drawn].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    middle = by_user.sum(axis=2).mean(axis=1)
    return {
        way: (float(middle[place]), float(low[place]), float(high[place]))
        for place, way in enumerate(WAYS)
    }


def _losses(one: Judged, way: Way | None) -> NDArray[np.float64]:
    chance = one.found[way].clip(1e-12, 1 - 1e-12)
    return -np.where(one.labels > 0, np.log(chance), np.log1p(-chance))


def lines_of(run: Path, early: list[dict[Way, float]]) -> list[str]:
    """Rows of the table for a run; adds to ``early`` the differences of NE on its early windows."""
    schema = Schema.load(run / "data/windows")
    names = [window.name for window in schema.windows]
    settings = load_settings(run / "params/evaluate.yaml", EvaluateSettings)
    first = settings.first_evaluation_window
    lines = []
    for student in sorted(path for path in (run / "models/students").iterdir() if path.is_dir()):
        domain = schema.domains.index(student.name)
        for arm in ARMS:
            folders = sorted((student / arm).glob("seed-*"))
            before = [judged(one, names, domain, range(EARLY, first)) for one in folders]
            early.append({way: found[0] for way, found in ne_differences(before).items()})
            late = [judged(one, names, domain, range(first, len(names))) for one in folders]
            rows = len(late[0].labels)
            cells = [run.name, student.name, arm, f"{rows:,}", _off(late, None)]
            for way, (middle, low, high) in ne_differences(late).items():
                change = f"{middle:+.5f} [{low:+.5f}, {high:+.5f}]"
                cells.append(f"{change}, {_off(late, way)}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _off(seeds: Sequence[Judged], way: Way | None) -> str:
    """Mean prediction over click rate, over seeds."""
    return f"{np.mean([one.found[way].mean() / one.labels.mean() for one in seeds]):.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="projects with results")
    parser.add_argument("--report", type=Path, help="where the Markdown goes, too")
    options = parser.parse_args()
    early: list[dict[Way, float]] = []
    table = [line for run in options.runs for line in lines_of(run, early)]
    heads = [f"{name}, {windows}" for name, windows in WAYS]
    text = [
        *machine_lines(
            "Calibration: what it is worth", "python -m bench.serving.calibration RUN ...", {}
        ),
        "",
        "Per student: rows of the evaluation windows, and mean prediction over click rate without",
        "a map. Then, per method, the change of NE with its 95 % interval over users and seeds,",
        "and mean prediction over click rate; below 0 the map helps. The number after a method",
        "says on how many windows it is fitted; it is refitted before each evaluation window.",
        "",
        f"| run | student | arm | rows | as it is | {' | '.join(heads)} |",
        "|---|---|---|---:|---:|" + "---:|" * len(WAYS),
        *table,
        "",
        "On the windows before those, where the default is chosen, mean and largest change of NE:",
        "",
        "| way | mean | largest |",
        "|---|---:|---:|",
        *(
            f"| {name}, {windows} | {np.mean([one[name, windows] for one in early]):+.5f} | "
            f"{max(one[name, windows] for one in early):+.5f} |"
            for name, windows in WAYS
        ),
    ]
    print_report("\n".join(text) + "\n", options.report)


if __name__ == "__main__":
    main()
