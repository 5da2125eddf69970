"""``towerflow crosses`` in a project: a log whose label is the parity of two columns."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from flows.towerflow import main
from tasks.ingest import ingest_windows

PARAMS = Path(__file__).parents[2] / "params"
HOURS, ROWS = 6, 2000
LOG = """# parity of left and right
format: table
table:
  files: [log.parquet]
  file_format: parquet
  time: {column: time, unit: s}
  label: clicked
  group: user
  categorical:
    - {column: left, table_rows: 100}    # kept
    - {column: right, table_rows: 100}
    - {column: user, table_rows: 1000}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a log of six hours, not yet cut into windows."""
    shutil.copytree(PARAMS, tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    count = HOURS * ROWS
    left, right = generator.integers(8, size=(2, count))
    rate = np.where((left + right) % 2, 0.6, 0.1)
    pl.DataFrame(
        {
            "time": 1_704_067_200 + np.arange(count) * 3600 // ROWS,
            "clicked": (generator.random(count) < rate).astype(np.int64),
            "left": left,
            "right": right,
            "user": generator.integers(150, size=count),
        }
    ).write_parquet(tmp_path / "log.parquet")
    Path("params/datasets/mine.yaml").write_text(LOG)
    return tmp_path


def point_to_the_log() -> None:
    path = Path("params/data.yaml")
    values = yaml.safe_load(path.read_text()) | {"dataset": "mine", "root": ".", "window_hours": 1}
    path.write_text(yaml.safe_dump(values))


def test_the_planted_pair_is_written_with_comments_kept(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to_the_log()
    assert main(["crosses"]) == 2
    assert "data/windows: no such" in capsys.readouterr().err
    ingest_windows.fn()
    assert main(["crosses"]) == 0
    assert "left, right" in capsys.readouterr().out
    assert (project / "params/datasets/mine.yaml").read_text() == LOG
    assert main(["crosses", "--write"]) == 0
    written = (project / "params/datasets/mine.yaml").read_text()
    assert yaml.safe_load(written)["table"]["crosses"] == [["left", "right"]]
    assert "# parity of left and right" in written
    assert "# kept" in written


def test_a_generated_stream_has_no_crosses(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["crosses"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "crosses need a log described in the section table" in line
