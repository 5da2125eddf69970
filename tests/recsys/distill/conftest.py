"""Scores of the small stream, and students that learn from them."""

from pathlib import Path

import polars as pl
import pytest

from recsys.distill.scoring import SCORE_SCHEMA
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from tests.support.toy_stream import TEACHER, TRAIN, WINDOWS


@pytest.fixture(scope="module")
def teacher_dir(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small stream's teacher, trained."""
    folder = tmp_path_factory.mktemp("teacher")
    train_teacher(TrainingJob(windows_dir, TEACHER, TRAIN, folder))
    return folder


@pytest.fixture(scope="module")
def scores_dir(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A score for every example of every window but the first."""
    folder = tmp_path_factory.mktemp("scores")
    for index, window in enumerate(WINDOWS):
        examples = pl.read_parquet(
            windows_dir / window.name / "part-00000.parquet", columns=["example_id"]
        )
        scores = examples.select(
            "example_id",
            logit=(pl.col("example_id") % 7 - 3).cast(pl.Float32),
            snapshot=pl.lit("w0"),
            high_water_mark=pl.lit(WINDOWS[0].end_ms),
            staleness_ms=pl.lit(0, dtype=pl.Int64),
        ).cast(SCORE_SCHEMA)  # type: ignore[arg-type]
        scores.head(scores.height if index else 0).write_parquet(folder / f"{window.name}.parquet")
    return folder


@pytest.fixture(scope="module")
def students_dir(
    request: pytest.FixtureRequest,
    windows_dir: Path,
    scores_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The students of the test module's SETTINGS, trained."""
    folder, settings = tmp_path_factory.mktemp("students"), request.module.SETTINGS
    train_students(TrainingJob(windows_dir, settings, TRAIN, folder, scores_dir=scores_dir))
    return folder
