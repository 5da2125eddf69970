"""Figures in the project's style; the same numbers give the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

STYLE = Path(__file__).with_suffix(".mplstyle")
NO_VERSION = {"Software": None}  # the PNG would otherwise name Matplotlib's version


@contextmanager
def figure_of(path: Path, size_inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure in the project's style (figures.mplstyle), saved as ``path`` at the end of the
    block."""
    with rc_context(fname=STYLE):
        figure = Figure(figsize=size_inches)
        yield figure
        figure.savefig(path, metadata=NO_VERSION)
