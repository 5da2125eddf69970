"""Figures of the report; the same numbers give the same bytes."""

from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from recsys.evaluation.comparison import Comparison

NO_VERSION = {"Software": None}  # the PNG would otherwise name Matplotlib's version
COLOURS = {"plain": "#7f7f7f", "distilled": "#d62728", "teacher": "#1f77b4", "oracle": "#2ca02c"}
OTHER_COLOURS = (
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#bcbd22",
    "#17becf",
    "#ff7f0e",
)  # of further arms, in turn
DIFFERENCE_METRICS = ("ne", "auc", "gauc")
DOTS_PER_INCH = 110


def draw_windows(student: str, rows: list[dict[str, Any]], path: Path) -> None:
    """NE of each model over windows; ``rows`` as in windows.csv."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    models = list(dict.fromkeys(row["model"].removeprefix(f"{student}/") for row in rows))
    others = zip(
        (model for model in models if model not in COLOURS), cycle(OTHER_COLOURS), strict=False
    )
    for model, colour in (COLOURS | dict(others)).items():
        own = [row for row in rows if row["model"] == f"{student}/{model}"]
        if own:
            axes.plot(
                [row["window"] for row in own],
                [row["ne"] for row in own],
                "o-",
                color=colour,
                label=model,
            )
    axes.set(title=f"{student}: normalised entropy by window (lower is better)", ylabel="NE")
    axes.tick_params(axis="x", rotation=45)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata=NO_VERSION)


def draw_differences(comparisons: list[tuple[str, Comparison]], arm: str, path: Path) -> None:
    """``arm`` minus plain with its interval, one panel a metric, one line a name."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, len(DIFFERENCE_METRICS))
    for axes, metric in zip(panels, DIFFERENCE_METRICS, strict=True):
        chosen = [(student, one) for student, one in comparisons if one.metric == metric]
        for height, (_, one) in enumerate(chosen):
            axes.plot(
                [one.low, one.high], [height, height], color=COLOURS["distilled"], linewidth=2
            )
            axes.plot(one.difference, height, "o", color=COLOURS["distilled"])
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(chosen)), [student for student, _ in chosen])
        axes.margins(y=0.3)
        axes.set_title(f"{metric}: {arm} - plain")
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata=NO_VERSION)
