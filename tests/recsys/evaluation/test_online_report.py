"""Progressive metrics: the batch report's numbers, a window measured once, sums over all so far."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.data.schema import Schema
from recsys.evaluation.online_report import best_arms, evaluate_windows, mean_over_windows
from tests.support.predictions import ROWS, WINDOWS, run


def measure(root: Path, windows: int, output: str) -> list[dict[str, Any]]:
    schema = Schema.load(root / "windows")
    taken = root / "taken"
    taken.mkdir(exist_ok=True)
    replace(schema, windows=WINDOWS[:windows]).save(taken)
    (root / output).mkdir()
    return evaluate_windows(
        taken, root / "oracle", root / "teacher", root / "students", root / "kept", root / output
    )


def test_window_after_window_gives_the_batch_reports_rows(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "baselines")  # a stream has none
    run(run_dir, "report")
    for count in range(1, len(WINDOWS) + 1):
        measure(run_dir, count, f"stream-{count}")
    batch, growing = (
        (run_dir / name / "windows.csv").read_text() for name in ("report", "stream-3")
    )
    assert sorted(growing.splitlines()) == sorted(batch.splitlines())


def test_a_window_without_labels_counts_for_nothing_in_report_and_stream(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "baselines")
    for path in run_dir.glob("**/predictions/w1.parquet"):
        frame = pl.read_parquet(path)
        frame.with_columns(label=pl.lit(float("nan"), dtype=pl.Float32)).write_parquet(path)
    report = run(run_dir, "report")
    rows = measure(run_dir, 3, "stream")
    batch, growing = ((run_dir / name / "windows.csv").read_text() for name in ("report", "stream"))
    assert sorted(growing.splitlines()) == sorted(batch.splitlines())
    assert {row["rows"] for row in rows if row["window"] == "w1"} == {0}
    assert report.rows_by_student == {"feed": ROWS // 2}  # of the windows w1 and w2
    assert all(math.isfinite(row.comparison.difference) for row in report.metrics)
    kept = [row for row in rows if row["window"] != "w1"]
    assert mean_over_windows(rows) == mean_over_windows(kept)
    newest = measure(run_dir, 2, "newest")
    assert best_arms(newest) == best_arms([row for row in newest if row["window"] == "w0"])
    assert "| w1 | 0 | - | - |" in (run_dir / "newest" / "table.md").read_text()


def test_a_window_that_was_measured_is_not_read_again(run_dir: Path) -> None:
    first = measure(run_dir, 2, "first")
    for window in WINDOWS[:2]:
        (run_dir / "teacher/predictions" / f"{window.name}.parquet").unlink()
    assert measure(run_dir, 3, "second")[: len(first)] == first


def test_mean_weighs_windows_by_their_rows_and_leaves_out_what_is_not_defined() -> None:
    metrics = {"task": "click", "ne": 0.0, "auc": 0.5, "gauc": 0.5, "calibration": 1.0}
    rows = [
        {"model": "feed/plain", "rows": 1, "logloss": 0.1, **metrics},
        {"model": "feed/plain", "rows": 3, "logloss": 0.5, **metrics, "auc": float("nan")},
        {"model": "feed/distilled", "rows": 4, "logloss": 0.3, **metrics},
        {"model": "feed/teacher", "rows": 4, "logloss": 0.1, **metrics},
    ]
    means = mean_over_windows(rows)
    assert means["feed/plain"]["logloss"] == pytest.approx(0.4)
    assert means["feed/plain"]["auc"] == pytest.approx(0.5)
    further = [
        {**row, "task": "cart", "logloss": 9.0 if "distilled" in row["model"] else 0.0}
        for row in rows
    ]
    assert best_arms(rows + further) == {"feed": "distilled"}


def test_table_shows_each_model_and_its_newest_window(run_dir: Path) -> None:
    rows = measure(run_dir, 2, "output")
    table = (run_dir / "output" / "table.md").read_text().splitlines()
    with (run_dir / "output" / "windows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 8
    newest = next(row for row in rows if row["model"] == "feed/plain" and row["window"] == "w1")
    line = next(line for line in table if line.startswith("| feed/plain |"))
    assert f"| {ROWS:,} |" in line  # half of the rows of two windows
    assert f"| w1 | {ROWS // 2} | {newest['ne']:.4f} | {newest['auc']:.4f} |" in line
