"""Rows that count as often as their weight says: in the log, in training and in reports."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from recsys.baselines.settings import BaselinesSettings, TreesSettings
from recsys.baselines.training import train_baselines
from recsys.config import InputError
from recsys.data.loader import WindowReader, batch_of
from recsys.data.schema import CategoricalFeature, Schema
from recsys.data.settings import DataSettings, TableSettings
from recsys.evaluation.metrics import normalized_entropy, probabilities
from recsys.models.factory import build_ranker
from recsys.progress import RowProgress
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings
from recsys.validation.progressive import DataView, predict_then_train
from tests.support.engines import everything
from tests.support.raw_logs import LOG, SECTION, rows_of, run
from tests.support.toy_stream import MODEL, TRAIN, WINDOWS, write_windows

FOURTH = "CASE WHEN clicked = '1' THEN 1 ELSE 4 END"  # a fourth of the negatives was kept
ONE_PASS = TRAIN.model_copy(update={"dense_learning_rate": 0.002})
TREES = TreesSettings(trees=5, smallest_leaf=5, learning_rate=0.3, smoothing=5.0)


def test_a_part_has_the_weights_and_the_schema_weighted_rates(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    section = SECTION | {"columns": {"kept": FOURTH}, "weight": "kept"}
    report = run(data_settings, tmp_path, "table", section, window_hours=24)
    rows, schema = rows_of(tmp_path), Schema.load(tmp_path / "windows")
    assert report.base_rate == 0.25  # of the rows that are there
    assert rows.select((pl.col("weight") == 4 - 3 * pl.col("label")).all()).item()
    assert schema.mean_weight == pytest.approx(3.25)
    assert schema.initial_base_rate == pytest.approx(10 / (10 + 4 * 30))
    phone = rows.filter(pl.col("domain") == 0)
    hits, total = (float(phone[name].to_numpy().sum()) / 3.25 for name in ("label", "weight"))
    leaning = (hits + 20 * schema.initial_base_rate) / (total + 20)
    assert schema.domain_base_rates[0] == pytest.approx(leaning)


def test_a_weight_that_is_no_number_above_0_makes_a_bad_row(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    given = ["1", "0", "-2", "inf", "", "heavy", *["2.5"] * 34]
    LOG.with_columns(pl.Series("importance", given)).write_csv(tmp_path / "log.csv")
    section = SECTION | {"weight": "importance"}
    run(data_settings, tmp_path, "table", section, quarantine_limit=0.5)
    bad = pl.read_csv(tmp_path / "windows/quarantine.csv")
    assert bad["row"].to_list() == [1, 2, 3, 4, 5]
    assert set(bad["reason"]) == {"weight in importance is not a number above 0"}
    assert rows_of(tmp_path)["weight"].sum() == 1 + 34 * 2.5


def test_a_weight_that_the_log_lacks_is_named(data_settings: DataSettings, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    with pytest.raises(InputError, match="'importance'"):
        run(data_settings, tmp_path, "table", SECTION | {"weight": "importance"})


def test_two_ways_to_make_up_for_left_out_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="negative_rate and weight both"):
        TableSettings.model_validate(SECTION | {"negative_rate": 0.1, "weight": "price"})


def train_thrice(schema: Schema, frame: pl.DataFrame, settings: TrainSettings) -> dict[str, Tensor]:
    """Weights and optimiser state after three steps on ``frame``."""
    engine = Engine(build_ranker(schema, MODEL, None, 1, "meta"), settings, 1)
    for _ in range(3):
        batch = batch_of(frame, schema, np.ones(frame.height, np.float32), frame.height)
        engine.train_step(batch, engine.serving_loss)
    return everything(engine)


def test_a_step_on_a_row_of_weight_three_is_one_on_three_rows() -> None:
    draw = np.random.default_rng(2)
    features = [CategoricalFeature("user", 20), CategoricalFeature("ad", 10)]
    schema = Schema("toy", ["price"], features, ["all"], [], 0.3, {})
    weights = np.array([1, 3, 2, 1, 5, 1, 2, 1], dtype=np.float32)
    rows = pl.DataFrame(
        {
            **dict.fromkeys(["example_id", "event_time", "group"], np.arange(8)),
            "domain": np.zeros(8, np.int64),
            "price": draw.normal(size=8),
            "user": draw.integers(20, size=8),
            "ad": draw.integers(10, size=8),
            "label": draw.integers(2, size=8).astype(np.float32),
            "weight": weights,
        }
    )
    settings = TRAIN.model_copy(update={"table_optimizer": "sgd", "dense_optimizer": "sgd"})
    trained = []
    for weighted in (True, False):
        own = replace(schema, mean_weight=float(weights.mean())) if weighted else schema
        frame = rows if weighted else rows[np.repeat(np.arange(8), weights.astype(int))]
        trained += launch(train_thrice, (own, frame, settings), settings)
    for name, value in trained[0].items():
        assert torch.allclose(value, trained[1][name], rtol=1e-4, atol=1e-6), name


def weigh(windows_dir: Path, weight: pl.Expr) -> None:
    """Give the rows of the windows weights."""
    write_windows(windows_dir)
    weights = []
    for window in WINDOWS:
        path = windows_dir / window.name / "part-00000.parquet"
        frame = pl.read_parquet(path).with_columns(weight=weight.cast(pl.Float32))
        frame.write_parquet(path)
        weights.append(frame["weight"].mean())
    replace(Schema.load(windows_dir), mean_weight=weights[0]).save(windows_dir)


def train_all(windows_dir: Path, output_dir: Path, settings: TrainSettings) -> list[dict[str, Any]]:
    """Baselines and a ranker on all windows; the ranker's metrics."""
    train_baselines(windows_dir, BaselinesSettings(trees=TREES), output_dir / "baselines")
    reader = WindowReader(windows_dir)
    engine = Engine(build_ranker(reader.schema, MODEL, None, 1, "meta"), settings, 1)
    data = DataView(reader, settings.global_batch_size)
    progress = RowProgress("ranker", 1, enabled=False)
    with progress:
        return predict_then_train(
            engine, engine.serving_loss, data, output_dir / "ranker", progress
        )


def predicted(folder: Path) -> dict[str, pl.DataFrame]:
    """What each model has predicted of the last window."""
    return {
        str(path.relative_to(folder)): pl.read_parquet(path)
        for path in sorted(folder.rglob(f"{WINDOWS[-1].name}.parquet"))
    }


def test_equal_weights_change_nothing_and_others_all_that_learns(tmp_path: Path) -> None:
    for name, weight in (
        ("none", None),
        ("equal", pl.lit(4)),
        ("own", pl.when(pl.col("label") > 0).then(1).otherwise(4)),
    ):
        windows = tmp_path / f"windows-{name}"
        windows.mkdir()
        if weight is None:
            write_windows(windows)
        else:
            weigh(windows, weight)
        [measured] = launch(train_all, (windows, tmp_path / name, ONE_PASS), ONE_PASS)
    none, equal, own = (predicted(tmp_path / name) for name in ("none", "equal", "own"))
    assert len(none) == 6  # five baselines and the ranker
    for model, frame in none.items():
        assert (equal[model]["weight"] == 1).all()
        assert frame.equals(equal[model].drop("weight")), model
        weights = own[model]["weight"].to_numpy()
        assert set((weights / weights.min()).round(3)) == {1, 4}
        # The log has kept a fourth of its negatives, and all models know
        kept, whole = (probabilities(one["logit"].to_numpy()) for one in (frame, own[model]))
        assert np.average(whole, weights=weights) < 0.6 * np.average(kept), model
    last = own["ranker/predictions/w3.parquet"]
    columns = (last[name].to_numpy() for name in ("logit", "label", "weight"))
    assert measured[-1]["ne"] == pytest.approx(normalized_entropy(*columns))
