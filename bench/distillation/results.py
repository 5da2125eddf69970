"""What the distillation experiments found: metrics by model and slice, paired over seeds, as tables
and figures."""

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from bench.distillation.lab import ARMS, TEACHER, WORK, Lab, Scores
from bench.shared.report import machine_line
from recsys.data.schema import Schema
from recsys.distill.distillation_settings import DistillationSettings
from recsys.evaluation.metrics import compute_metrics
from recsys.figures import figure_of

SEEN_LESS = 5  # times, in earlier windows of the domain: a cold user or ad
CONFIDENCE = 0.95
WHOLE, WINDOW = "all", "window "  # slices; a window's has its number, from 1
Parts = dict[str, dict[str, float]]  # metrics by slice
Found = dict[str, Parts]  # by model, of one seed


@dataclass(frozen=True)
class Slices:
    """The judged rows of one seed: masks [N] by slice, labels, groups, and logits [N] by model."""

    masks: dict[str, NDArray[np.bool_]]
    labels: NDArray[np.floating]
    groups: NDArray[np.integer]
    logits: dict[str, NDArray[np.floating]]

    def metrics(self) -> Found:
        """Metrics by model and slice."""
        return {
            model: {
                name: compute_metrics(logits[mask], self.labels[mask], self.groups[mask]).as_dict()
                for name, mask in self.masks.items()
            }
            for model, logits in self.logits.items()
        }


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with Student's interval and the p of its test against 0; one seed has NaN
    and None."""

    mean: float
    low: float
    high: float
    p: float | None

    def __str__(self) -> str:
        if self.p is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def interval(values: Sequence[float]) -> Interval:
    """Over paired differences, one per seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan, None)
    error = float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    p = 2 * float(stats.t.sf(abs(mean) / error, len(values) - 1)) if error > 0 else None
    return Interval(mean, mean - half, mean + half, p)


def change(
    results: list[Found], model: str, reference: str, part: str = WHOLE, metric: str = "ne"
) -> Interval:
    """By how many percent of ``reference``'s value ``model`` differs from it, paired by seed."""
    pairs = [(found[model][part][metric], found[reference][part][metric]) for found in results]
    return interval([100 * (one - other) / other for one, other in pairs])


def mean(results: list[Found], model: str, metric: str, part: str = WHOLE) -> float:
    """Over seeds."""
    return float(np.mean([found[model][part][metric] for found in results]))


def measured(
    lab: Lab,
    arms: dict[str, DistillationSettings],
    scores: Scores = TEACHER,
    first_window: int | None = None,
    whole_only: bool = False,
) -> Found:
    """Metrics of all models on one seed; trains what is missing. ``first_window``: None for the
    stream's own."""
    lab.prepare(scores)
    lab.train_students(arms, scores)
    first = lab.case.first_window if first_window is None else first_window
    return read_slices(lab, arms, scores, first, whole_only).metrics()


def read_slices(
    lab: Lab,
    arms: dict[str, DistillationSettings],
    scores: Scores,
    first_window: int,
    whole_only: bool,
) -> Slices:
    """The students' rows of the windows that judge, with the logits of each arm, the scores and the
    oracle if known."""
    schema = Schema.load(lab.windows)
    frames = []
    for index, window in enumerate(schema.windows[first_window:], start=first_window + 1):
        base = _predictions(lab, "plain", ARMS["plain"], scores, window.name).drop("logit")
        if not whole_only:
            base = base.join(
                _times_seen(lab.windows, window.name), on="example_id", maintain_order="left"
            )
        parts = {"teacher": lab.score_log(scores, window.name)} | _oracle(lab, window.name)
        parts |= {
            arm: _predictions(lab, arm, how, scores, window.name) for arm, how in arms.items()
        }
        for model, part in parts.items():
            logits = part.select("example_id", pl.col("logit").alias(model))
            base = base.join(logits, on="example_id", maintain_order="left")
        frames.append(base.with_columns(window=pl.lit(index)))
    whole = pl.concat(frames)
    masks = {WHOLE: np.ones(whole.height, dtype=bool)}
    models = [*arms, *(name for name in ("teacher", "oracle") if name in whole.columns)]
    logits = {model: whole[model].to_numpy() for model in models}
    if not whole_only:
        masks |= _slices(whole, lab.domains, schema.domains)
    return Slices(masks, whole["label"].to_numpy(), whole["group"].to_numpy(), logits)


def _slices(
    whole: pl.DataFrame, served: list[str], domains: list[str]
) -> dict[str, NDArray[np.bool_]]:
    """Masks [N] of each domain that has a student, of cold users and ads, and of each window."""
    masks = {domain: (whole["domain"] == domains.index(domain)).to_numpy() for domain in served}
    masks |= {
        f"{kind}s seen < {SEEN_LESS}": (whole[f"{kind}_seen"] < SEEN_LESS).to_numpy()
        for kind in _entities(whole)
    }
    masks |= {
        f"{WINDOW}{index}": (whole["window"] == index).to_numpy()
        for index in whole["window"].unique().sort()
    }
    return masks


def _predictions(
    lab: Lab, arm: str, how: DistillationSettings, scores: Scores, window: str
) -> pl.DataFrame:
    """All students' predictions of a window, by example_id."""
    output = lab.folder / lab.output(how, scores)
    paths = [
        output / domain / arm / f"seed-{lab.seed}/predictions/{window}.parquet"
        for domain in lab.domains
    ]
    return pl.concat([pl.read_parquet(path) for path in paths]).sort("example_id")


def _oracle(lab: Lab, window: str) -> dict[str, pl.DataFrame]:
    path = lab.windows.parent / "oracle" / f"{window}.parquet"
    if not path.is_file():
        return {}
    probability = pl.col("probability").clip(1e-12, 1 - 1e-12)
    return {
        "oracle": pl.read_parquet(path).select(
            "example_id", logit=(probability / (1 - probability)).log()
        )
    }


def _entities(frame: pl.DataFrame) -> list[str]:
    return [name.removesuffix("_seen") for name in frame.columns if name.endswith("_seen")]


@cache
def _times_seen(windows_dir: Path, name: str) -> pl.DataFrame:
    """How often each example's user and ad were seen in its domain in earlier windows."""
    schema = Schema.load(windows_dir)
    ids = {"user": "user_id", "ad": "ad_id", "article": "candidate"}
    known = {
        kind: column
        for kind, column in ids.items()
        if column in {one.name for one in schema.categorical}
    }
    columns = ["example_id", "domain", *known.values()]
    names = [window.name for window in schema.windows]
    earlier = [
        pl.read_parquet(windows_dir / n / "*.parquet", columns=columns)
        for n in names[: names.index(name)]
    ]
    frame = pl.read_parquet(windows_dir / name / "*.parquet", columns=columns)
    before = pl.concat([frame.clear(), *earlier])
    for kind, column in known.items():
        counts = before.group_by("domain", column).agg(pl.len().alias(f"{kind}_seen"))
        frame = frame.join(counts, on=["domain", column], how="left", maintain_order="left")
    return frame.select("example_id", *(pl.col(f"{kind}_seen").fill_null(0) for kind in known))


def write_section(path: Path, heading: str, section: str, lines: Iterable[str]) -> None:
    """Put ``lines`` under "## ``section``" of a report, in place of what stood there."""
    text = path.read_text() if path.exists() else f"# {heading}\n\n{machine_line()}\n"
    head, *sections = text.split("\n## ")
    kept = [one for one in sections if one.split("\n", 1)[0] != section]
    ours = "\n".join([section, "", *lines]) + "\n"
    place = next(
        (index for index, one in enumerate(sections) if one.split("\n", 1)[0] == section), len(kept)
    )
    path.write_text("\n## ".join([head, *kept[:place], ours, *kept[place:]]))


def draw_lines(
    path: Path,
    axis: str,
    places: Sequence[float],
    series: dict[str, list[Interval]],
    ticks: Sequence[str],
    title: str,
) -> None:
    """One line per model over ``places``, with its interval."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure_of(path, (7, 4)) as figure:
        axes = figure.subplots()
        for model, values in series.items():
            means = [value.mean for value in values]
            errors = [
                [value.mean - value.low for value in values],
                [value.high - value.mean for value in values],
            ]
            axes.errorbar(places, means, yerr=errors, marker="o", capsize=3, label=model)
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set_xticks(places, ticks, fontsize="small")
        axes.set(title=title, xlabel=axis, ylabel="NE change % (lower is better)")
        axes.legend()


def command_line(description: str | None, choices: Iterable[str]) -> argparse.ArgumentParser:
    """What every experiment asks for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(choices))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--rows", type=int, default=240_000, help="of a generated stream")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument(
        "--logs", type=Path, default=Path("logs"), help="folder that holds ebnerd_demo/"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the table in docs/benchmarks, figures in docs/figures",
    )
    parser.add_argument(
        "--mlflow", action="store_true", help="log each model and seed to MLflow, with figures"
    )
    return parser
