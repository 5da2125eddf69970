"""The report on made-up predictions: joined by example, pooled, reproducible."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.schema import Schema, Window
from recsys.evaluation.metrics import auc, probabilities
from recsys.evaluation.printed import print_report
from recsys.evaluation.report import Report, evaluate
from recsys.evaluation.settings import EvaluateSettings

ROWS = 600
WINDOWS = [Window(f"w{i}", 100 * i, 100 * (i + 1), ROWS, 0) for i in range(3)]
SETTINGS = EvaluateSettings(first_evaluation_window=1, bootstrap_samples=30, confidence=0.9, seed=1)


def write(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Student "feed" sees the even examples only; its distilled arm is the less noisy one."""
    generator = np.random.default_rng(8)
    (tmp_path / "windows").mkdir()
    (tmp_path / "oracle").mkdir()
    Schema("toy", [], [], ["feed", "other"], WINDOWS, 0.1, {}).save(tmp_path / "windows")
    for window in WINDOWS:
        truth = generator.normal(-1, 1.5, size=ROWS)
        frame = pl.DataFrame(
            {
                "example_id": window.start_ms * ROWS + np.arange(ROWS),
                "group": generator.integers(50, size=ROWS),
                "domain": np.arange(ROWS, dtype=np.int32) % 2,
                "event_time": np.full(ROWS, window.start_ms),
                "label": (generator.random(ROWS) < probabilities(truth)).astype(np.float32),
            }
        )
        name = f"{window.name}.parquet"
        oracle = frame.select("example_id", probability=pl.lit(pl.Series(probabilities(truth))))
        write(tmp_path / "oracle" / name, oracle)
        noise = {
            "teacher": 0.3,
            "students/feed/plain/seed-{}": 2.0,
            "students/feed/distilled/seed-{}": 1.0,
        }
        for model, scale in noise.items():
            for seed in (1, 2):
                logit = (truth + scale * generator.normal(size=ROWS)).astype(np.float32)
                whole = frame.with_columns(logit=pl.Series(logit))
                part = whole if model == "teacher" else whole.filter(pl.col("domain") == 0)
                write(tmp_path / model.format(seed) / "predictions" / name, part)
    return tmp_path


def run(root: Path, output: str, settings: EvaluateSettings = SETTINGS) -> Report:
    return evaluate(
        root / "windows",
        root / "oracle",
        root / "teacher",
        root / "students",
        settings,
        root / output,
    )


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
