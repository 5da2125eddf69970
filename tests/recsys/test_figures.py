"""Every figure of the project is drawn in one style, to the same bytes for the same numbers."""

from pathlib import Path

import matplotlib
from matplotlib.image import imread

import recsys.figures
from recsys.figures import figure_of
from tests.support.projects import ROOT


def draw(path: Path) -> str:
    """A line; its colour."""
    with figure_of(path, (2, 1)) as figure:
        axes = figure.subplots()
        (line,) = axes.plot([1, 2], [3, 4], label="line")
        axes.legend()
    return str(line.get_color())


def test_a_figure_has_the_styles_colours_and_resolution_and_the_same_bytes_again(
    tmp_path: Path,
) -> None:
    before = dict(matplotlib.rcParams)
    assert [draw(tmp_path / name) for name in ("one.png", "other.png")] == ["#0072b2"] * 2
    assert imread(tmp_path / "one.png").shape[:2] == (110, 220)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_no_other_module_makes_figures() -> None:
    makers = [
        path
        for folder in ("flows", "tasks", "recsys", "bench")
        for path in (ROOT / folder).rglob("*.py")
        if any(name in path.read_text() for name in ("matplotlib.figure", "pyplot"))
    ]
    assert makers == [Path(recsys.figures.__file__)]
