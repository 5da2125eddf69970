"""Made-up predictions of a teacher, two arms and baselines."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.data.schema import Schema
from recsys.evaluation.metrics import probabilities
from tests.support.predictions import ROWS, WINDOWS


def write(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Student "feed" sees the even examples only; its distilled arm is the less noisy one, of the
    baselines the regression on all rows."""
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
            "baselines/logistic/own": 3.0,
            "baselines/logistic/all": 0.5,
            "baselines/trees/own": 2.5,
        }
        for model, scale in noise.items():
            for seed in (1, 2):
                logit = (truth + scale * generator.normal(size=ROWS)).astype(np.float32)
                whole = frame.with_columns(logit=pl.Series(logit))
                part = whole.filter(pl.col("domain") == 0) if "students" in model else whole
                write(tmp_path / model.format(seed) / "predictions" / name, part)
    return tmp_path
