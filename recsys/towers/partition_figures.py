"""Pictures of a partition, the same bytes for the same partition."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from recsys.data.names import feature_name
from recsys.models.partition_file import Partition

DOTS_PER_INCH = 120
SIZE_INCHES = (8, 7)
COLORS = "tab10"


def draw_affinity(partition: Partition, path: Path) -> None:
    """Heat map of the affinity, features ordered by tower, towers framed."""
    order = [partition.features.index(name) for tower in partition.towers for name in tower]
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    affinity = np.array(partition.affinity)[np.ix_(order, order)]
    np.fill_diagonal(affinity, np.nan)
    image = axes.imshow(affinity, cmap="viridis")
    names = [feature_name(partition.features[i]) for i in order]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    start = -0.5  # pixels are centred on whole numbers
    for tower in partition.towers:
        axes.add_patch(_frame(start, len(tower)))
        start += len(tower)
    axes.set_title("Affinity of features (mean cosine); frames are towers")
    figure.colorbar(image, ax=axes)
    _save(figure, path)


def draw_map(partition: Partition, path: Path) -> None:
    """The first two coordinates of each feature, coloured by tower."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    points = np.array(partition.coordinates)
    if points.shape[1] == 1:
        points = np.hstack([points, np.zeros_like(points)])
    palette = colormaps[COLORS]
    for index, tower in enumerate(partition.towers):
        rows = points[[partition.features.index(name) for name in tower]]
        axes.scatter(
            rows[:, 0], rows[:, 1], color=palette(index % palette.N), label=f"tower {index}"
        )
        for name, (x, y) in zip(tower, rows[:, :2], strict=True):
            axes.annotate(feature_name(name), (x, y), xytext=(4, 4), textcoords="offset points")
    axes.set_title(f"Features by {partition.strategy} distance, stress {partition.stress:.3f}")
    axes.legend()
    _save(figure, path)


def _frame(start: float, size: int) -> Rectangle:
    return Rectangle((start, start), size, size, fill=False, edgecolor="red", linewidth=2)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
