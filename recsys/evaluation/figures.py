"""Figures for the report; the same numbers give the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.evaluation.comparison import Comparison
from recsys.evaluation.model_table import BASELINES
from recsys.figures import figure_of

# The style's colours; baselines are thin dashed lines without markers
LINES: dict[str, dict[str, Any]] = {
    "plain": {"color": "#7f7f7f", "marker": "o"},
    "distilled": {"color": "#d55e00", "marker": "o"},
    "teacher": {"color": "#0072b2", "marker": "s"},
    "teacher (external)": {"color": "#0072b2", "marker": "D", "linestyle": "--"},
    "teacher (mean)": {"color": "#0072b2", "marker": "D", "linestyle": "--"},
    "teacher (stacked)": {"color": "#0072b2", "marker": "D", "linestyle": "--"},
    "oracle": {"color": "#009e73", "marker": "^"},
    "base rate": {"color": "#000000", "linestyle": ":", "linewidth": 1.0},
    "logistic (own rows)": {"color": "#e69f00", "linestyle": "--", "linewidth": 1.2},
    "logistic (all rows)": {"color": "#e69f00", "linestyle": ":", "linewidth": 1.8},
    "trees (own rows)": {"color": "#56b4e9", "linestyle": "--", "linewidth": 1.2},
    "trees (all rows)": {"color": "#56b4e9", "linestyle": ":", "linewidth": 1.8},
}
FURTHER_COLOUR = "#cc79a7"  # for further arms, which differ in their markers
FURTHER_MARKERS = "Dv<>pPX*"
DIFFERENCE_METRICS = ("ne", "auc", "gauc")
MIDNIGHT = "T00-00"  # the end of a window's name that a day does not need


def draw_windows(student: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the NE of each model over windows; ``rows`` as in windows.csv."""
    with figure_of(path, (10, 4)) as figure:
        axes = figure.subplots()
        for model, line in _lines(student, rows).items():
            own = [row for row in rows if row["model"] == f"{student}/{model}"]
            if own:
                windows = [row["window"].removesuffix(MIDNIGHT) for row in own]
                axes.plot(windows, [row["ne"] for row in own], label=model, **line)
        axes.set(
            title=f"{student}: normalised entropy by window (lower is better)",
            xlabel="window (UTC)",
            ylabel="NE",
        )
        axes.tick_params(axis="x", rotation=45)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_calibration(student: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Draw observed against predicted rate for each model except baselines, whose lines would hide
    the others; ``rows`` as in calibration.csv."""
    with figure_of(path, (7, 5)) as figure:
        axes = figure.subplots()
        highest = max((max(row["predicted"], row["observed"]) for row in rows), default=1.0)
        axes.plot([0, highest], [0, highest], color="black", linewidth=0.8)
        for model, line in _lines(student, rows).items():
            own = [row for row in rows if row["model"] == f"{student}/{model}"]
            if own and model not in BASELINES:
                predicted = [row["predicted"] for row in own]
                axes.plot(predicted, [row["observed"] for row in own], label=model, **line)
        axes.set(
            title=f"{student}: predicted and observed rate",
            xlabel="predicted probability (mean of a bin)",
            ylabel="observed rate (share of positives in the bin)",
        )
        if rows:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_gains(
    student: str, slices: dict[str, dict[str, Any]], models: Sequence[str], path: Path
) -> None:
    """Draw by how much each of ``models`` is below plain's NE, in % of it, by domain and coldness.

    ``slices`` is one student's, as in report.json; nothing is drawn if no row has a label.
    """
    kinds = [kind for kind in ("domain", "coldness") if slices.get(kind)]
    if not kinds:
        return
    with figure_of(path, (10, 4)) as figure:
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        lines = _lines(student, [{"model": f"{student}/{model}"} for model in models])
        for axes, kind in zip(panels, kinds, strict=True):
            names = list(slices[kind])
            for place, model in enumerate(models):
                shift = 0.6 * (place + 0.5) / len(models) - 0.3
                for height, name in enumerate(names):
                    own, plain = (
                        slices[kind][name]["models"][model],
                        slices[kind][name]["models"]["plain"],
                    )
                    scale = -100 / plain["ne"]
                    gain, low, high = (scale * own[key] for key in ("difference", "high", "low"))
                    line = {key: lines[model][key] for key in ("color", "marker")}
                    label = model if height == 0 else None
                    axes.plot([low, high], [height + shift] * 2, color=line["color"], linewidth=1.5)
                    axes.plot(gain, height + shift, linestyle="none", label=label, **line)
            axes.axvline(0.0, color="black", linewidth=0.8)
            rows = [f"{name}\n({slices[kind][name]['rows']:,} rows)" for name in names]
            axes.set_yticks(range(len(names)), rows)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set(title=f"{student}: gain over plain by {kind}", xlabel="NE below plain's (%)")
            axes.grid(visible=False, axis="y")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_differences(comparisons: list[tuple[str, Comparison]], arm: str, path: Path) -> None:
    """Draw ``arm`` minus plain with its interval, one panel per metric, one line per name."""
    with figure_of(path, (10, 3)) as figure:
        panels = figure.subplots(1, len(DIFFERENCE_METRICS))
        for axes, metric in zip(panels, DIFFERENCE_METRICS, strict=True):
            chosen = [(student, one) for student, one in comparisons if one.metric == metric]
            for height, (_, one) in enumerate(chosen):
                colour = LINES["distilled"]["color"]
                axes.plot([one.low, one.high], [height, height], color=colour, linewidth=2)
                axes.plot(one.difference, height, "o", color=colour)
            axes.axvline(0.0, color="black", linewidth=0.8)
            axes.set_yticks(range(len(chosen)), [student for student, _ in chosen])
            axes.margins(y=0.3)
            axes.set_title(f"{metric}: {arm} - plain")


def _lines(student: str, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The line style of each model, including models that are not in LINES."""
    models = list(dict.fromkeys(row["model"].removeprefix(f"{student}/") for row in rows))
    further = [model for model in models if model not in LINES]
    return LINES | {
        model: {"color": FURTHER_COLOUR, "marker": FURTHER_MARKERS[index % len(FURTHER_MARKERS)]}
        for index, model in enumerate(further)
    }
