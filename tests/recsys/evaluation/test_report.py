"""The report on made-up predictions: joined by example, pooled, reproducible."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.evaluation.metrics import auc
from recsys.evaluation.printed import print_report
from tests.support.predictions import ROWS, SETTINGS, run


def test_headline_pools_the_evaluation_windows(run_dir: Path) -> None:
    report = run(run_dir, "report")
    values = json.loads((run_dir / "report" / "report.json").read_text())
    parts = [
        pl.read_parquet(
            run_dir / "students/feed/plain" / f"seed-{seed}" / "predictions" / f"w{window}.parquet"
        ).with_columns(seed=seed)
        for seed in (1, 2)
        for window in (1, 2)
    ]
    whole = pl.concat(parts)
    by_seed = [whole.filter(pl.col("seed") == seed) for seed in (1, 2)]
    expected = np.mean([auc(one["logit"].to_numpy(), one["label"].to_numpy()) for one in by_seed])
    assert values["students"]["feed"]["auc"]["plain"] == pytest.approx(expected)
    assert report.rows_by_student == {"feed": ROWS}
    assert values["students"]["feed"]["ne"]["high"] < 0
    assert (
        values["students"]["feed"]["ne"]["oracle"] < values["students"]["feed"]["ne"]["distilled"]
    )
    assert values["seeds"] == [1, 2]


def test_outputs_are_reproducible(run_dir: Path) -> None:
    run(run_dir, "first")
    run(run_dir, "second")
    written = sorted(
        path.relative_to(run_dir / "first") for path in (run_dir / "first").rglob("*.*")
    )
    names = [
        "figures/differences.png",
        "figures/ne_feed.png",
        "report.json",
        "table.md",
        "windows.csv",
    ]
    assert [path.as_posix() for path in written] == names
    for path in written:
        assert (run_dir / "first" / path).read_bytes() == (run_dir / "second" / path).read_bytes()


def test_real_logs_have_no_oracle(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run_dir / "oracle").iterdir():
        path.unlink()
    report = run(run_dir, "report")
    assert all(row.oracle is None for row in report.metrics)
    print_report(run_dir / "report")
    printed = capsys.readouterr().out
    assert all(
        label in printed for label in ("NE", "AUC", "gAUC", "LogLoss", "calibration", "feed")
    )


def test_missing_predictions_are_named(run_dir: Path) -> None:
    path = run_dir / "students/feed/distilled/seed-2/predictions/w2.parquet"
    path.unlink()
    with pytest.raises(InputError, match=r"seed-2/predictions/w2\.parquet: no such predictions"):
        run(run_dir, "report")


def test_windows_must_be_left_to_evaluate(run_dir: Path) -> None:
    settings = SETTINGS.model_copy(update={"first_evaluation_window": 3})
    with pytest.raises(InputError, match="below the number of windows 3, got 3"):
        run(run_dir, "report", settings)
