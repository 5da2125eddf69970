"""Figures of a partition; the same partition gives the same bytes."""

from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle

from recsys.data.names import feature_name
from recsys.figures import figure_of
from recsys.models.partition_file import Partition

SIZE_INCHES = (8, 7)


def draw_affinity(partition: Partition, path: Path) -> None:
    """Draw a heat map of the affinity, with features ordered by tower and towers framed."""
    order = [partition.features.index(name) for tower in partition.towers for name in tower]
    with figure_of(path, SIZE_INCHES) as figure:
        axes = figure.subplots()
        affinity = np.array(partition.affinity)[np.ix_(order, order)]
        np.fill_diagonal(affinity, np.nan)
        axes.grid(visible=False)
        image = axes.imshow(affinity)
        names = [feature_name(partition.features[i]) for i in order]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        start = -0.5  # pixels are centred on whole numbers
        for tower in partition.towers:
            axes.add_patch(_frame(start, len(tower)))
            start += len(tower)
        axes.set_title("Affinity of features; frames are towers")
        figure.colorbar(image, ax=axes, label="mean cosine")


def draw_map(partition: Partition, path: Path) -> None:
    """Draw the first two coordinates of each feature, coloured by tower."""
    with figure_of(path, SIZE_INCHES) as figure:
        axes = figure.subplots()
        points = np.array(partition.coordinates)
        if points.shape[1] == 1:
            points = np.hstack([points, np.zeros_like(points)])
        for index, tower in enumerate(partition.towers):
            rows = points[[partition.features.index(name) for name in tower]]
            axes.scatter(rows[:, 0], rows[:, 1], color=f"C{index}", label=f"tower {index}")
            for name, (x, y) in zip(tower, rows[:, :2], strict=True):
                axes.annotate(feature_name(name), (x, y), xytext=(4, 4), textcoords="offset points")
        axes.set_title(f"Features by {partition.strategy} distance, stress {partition.stress:.3f}")
        axes.legend()


def _frame(start: float, size: int) -> Rectangle:
    return Rectangle((start, start), size, size, fill=False, edgecolor="white", linewidth=2)
