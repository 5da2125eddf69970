"""A value that is not finite: its window and feature are named, or its batch is counted in the
window's metrics."""

import json
import math
import shutil
from pathlib import Path

import polars as pl
import pytest

from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.training.non_finite import NonFiniteLossError
from tests.support.toy_stream import TEACHER, TRAIN


@pytest.fixture
def windows_with_infinity(windows_dir: Path, tmp_path: Path) -> Path:
    """One infinite price in w1, whose label is known in w1."""
    folder = tmp_path / "windows"
    shutil.copytree(windows_dir, folder)
    path = folder / "w1" / "part-00000.parquet"
    price = (
        pl.when(pl.int_range(pl.len()) == 7)
        .then(math.inf)
        .otherwise(pl.col("price"))
        .cast(pl.Float32)
    )
    pl.read_parquet(path).with_columns(price=price).write_parquet(path)
    return folder


def test_the_run_ends_with_window_and_feature(windows_with_infinity: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"window w1: the loss is not finite.*features: price;"
    ) as caught:
        train_teacher(TrainingJob(windows_with_infinity, TEACHER, TRAIN, tmp_path / "teacher"))
    assert (caught.value.window, caught.value.features) == ("w1", ("price",))


def test_skipped_batches_are_counted_in_their_window(
    windows_with_infinity: Path, tmp_path: Path
) -> None:
    train = TRAIN.model_copy(update={"skip_non_finite_batches": True})
    (tmp_path / "teacher").mkdir()
    train_teacher(TrainingJob(windows_with_infinity, TEACHER, train, tmp_path / "teacher"))
    rows = json.loads((tmp_path / "teacher" / "metrics.json").read_text())["windows"]
    assert [row.get("skipped_batches") for row in rows] == [None, 1, None, None]
