"""Baselines over windows: predicted before learnt, whole, and the same bytes each time."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.baselines.settings import BaselinesSettings, TreesSettings
from recsys.baselines.training import train_baselines
from recsys.config import InputError, parse_settings
from recsys.data.schema import Schema
from recsys.evaluation.predictions import PREDICTION_SCHEMA, measure
from recsys.files import finite
from tests.support.files import contents
from tests.support.toy_stream import ROWS, WINDOWS, write_windows

TREES = TreesSettings(trees=5, smallest_leaf=5, learning_rate=0.3, smoothing=5.0)
SETTINGS = BaselinesSettings(trees=TREES)
FOLDERS = ["base_rate/own", "logistic/all", "logistic/own", "trees/all", "trees/own"]


def predictions(folder: Path) -> dict[str, list[pl.DataFrame]]:
    """Of each baseline and scope, the windows' predictions."""
    return {
        name: [
            pl.read_parquet(folder / name / "predictions" / f"{window.name}.parquet")
            for window in WINDOWS
        ]
        for name in FOLDERS
    }


def rewrite(windows: Path, index: int, *columns: pl.Expr, keep: pl.Expr | None = None) -> None:
    path = windows / WINDOWS[index].name / "part-00000.parquet"
    frame = pl.read_parquet(path).with_columns(*columns)
    (frame if keep is None else frame.filter(keep)).write_parquet(path)


@pytest.fixture(scope="module")
def trained(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    train_baselines(windows_dir, SETTINGS, folder)
    return folder


def test_every_example_is_predicted_once_in_the_form_of_a_models_predictions(
    trained: Path,
) -> None:
    assert sorted(f"{p.parent.name}/{p.name}" for p in trained.glob("*/*")) == FOLDERS
    for name, frames in predictions(trained).items():
        measured = json.loads((trained / name / "metrics.json").read_text())["windows"]
        for index, (frame, row) in enumerate(zip(frames, measured, strict=True)):
            assert frame.schema == pl.Schema(PREDICTION_SCHEMA)
            assert frame["example_id"].to_list() == list(range(index * ROWS, (index + 1) * ROWS))
            assert np.isfinite(frame["logit"].to_numpy()).all()
            assert row == finite({"window": WINDOWS[index].name, **measure(frame)})


def test_they_learn(trained: Path) -> None:
    for name, frames in predictions(trained).items():
        if not name.startswith("base_rate"):  # the label is a function of the ad
            assert measure(frames[3])["ne"] < 0.8 * measure(frames[0])["ne"]


def test_a_base_rate_is_the_mean_label_of_what_is_known(windows_dir: Path, trained: Path) -> None:
    first = pl.read_parquet(windows_dir / "w0" / "part-00000.parquet")
    known = first.filter(pl.col("label_time") < WINDOWS[0].end_ms)
    for domain in (0, 1):
        labels = known.filter(pl.col("domain") == domain)["label"]
        rate = (float(labels.to_numpy().sum()) + 20 * 0.25) / (len(labels) + 20)
        found = predictions(trained)["base_rate/own"][1].filter(pl.col("domain") == domain)
        assert found["logit"].unique().to_list() == pytest.approx([np.log(rate / (1 - rate))])


def test_labels_that_become_known_later_change_no_earlier_prediction(
    trained: Path, tmp_path: Path
) -> None:
    windows = tmp_path / "windows"
    windows.mkdir()
    write_windows(windows)
    time = WINDOWS[1].end_ms
    label = pl.when(pl.col("label_time") >= time).then(1 - pl.col("label")).otherwise("label")
    for index in range(len(WINDOWS)):
        rewrite(windows, index, label.alias("label"))
    train_baselines(windows, SETTINGS, tmp_path / "changed")
    before, after = predictions(trained), predictions(tmp_path / "changed")
    for name in FOLDERS:
        for index in range(3):
            assert after[name][index]["logit"].equals(before[name][index]["logit"]), (name, index)
        assert not after[name][3]["logit"].equals(before[name][3]["logit"]), name


def test_a_domains_own_model_sees_no_other_domains_rows(trained: Path, tmp_path: Path) -> None:
    windows = tmp_path / "windows"
    windows.mkdir()
    write_windows(windows)
    label = pl.when(pl.col("domain") == 1).then(1 - pl.col("label")).otherwise("label")
    for index in range(len(WINDOWS)):
        rewrite(windows, index, label.alias("label"))
    train_baselines(windows, SETTINGS, tmp_path / "changed")
    before, after = predictions(trained), predictions(tmp_path / "changed")
    for name in FOLDERS:
        logits = [
            pl.concat(one[name]).filter(pl.col("domain") == 0)["logit"] for one in (before, after)
        ]
        assert logits[0].equals(logits[1]) == name.endswith("own"), name


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_windows_give_the_same_bytes_on_any_number_of_threads(
    threads: int, windows_dir: Path, trained: Path, tmp_path: Path
) -> None:
    trees = TREES.model_copy(update={"threads": threads})
    train_baselines(windows_dir, BaselinesSettings(trees=trees), tmp_path)
    paths = [path for path in sorted(trained.rglob("*")) if path.is_file()]
    assert len(paths) == len(FOLDERS) * (len(WINDOWS) + 1)
    for path in paths:
        assert (tmp_path / path.relative_to(trained)).read_bytes() == path.read_bytes()


def test_a_window_may_lack_a_domain_and_labels(tmp_path: Path) -> None:
    windows = tmp_path / "windows"
    windows.mkdir()
    write_windows(windows)
    rewrite(windows, 1, keep=pl.col("domain") == 0)
    for index in range(len(WINDOWS)):  # none is known before the last window begins
        rewrite(windows, index, pl.max_horizontal("label_time", pl.lit(WINDOWS[2].end_ms)))
    train_baselines(windows, SETTINGS, tmp_path / "output")
    for name, frames in predictions(tmp_path / "output").items():
        assert [frame.height for frame in frames] == [ROWS, ROWS // 2, ROWS, ROWS]
        logits = pl.concat(frames)["logit"].to_numpy()
        assert logits == pytest.approx(np.full(len(logits), np.log(0.25 / 0.75))), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: []", "key 'run': .* at least 1"),
        ("run: [forest]", "key 'run.0': .*'base_rate', 'logistic' or 'trees', got 'forest'"),
        ("trees: {leafs: 7}", "unknown key 'trees.leafs'; did you mean 'leaves'?"),
        ("trees: {leaves: 1}", "key 'trees.leaves': .* greater than or equal to 2, got 1"),
        ("logistic: {batch_size: 0}", "key 'logistic.batch_size': .* greater than 0, got 0"),
    ],
)
def test_a_wrong_setting_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"baselines.yaml: {message}"):
        parse_settings(text, "baselines.yaml", BaselinesSettings)


def test_more_windows_are_gone_on_with_as_if_all_had_been_there(
    windows_dir: Path, trained: Path, tmp_path: Path
) -> None:
    """What was predicted stays as it is; the bytes are those of one call over all windows."""
    schema = Schema.load(windows_dir)
    for count in (2, 3, 4):
        windows = tmp_path / f"windows-{count}"
        shutil.copytree(windows_dir, windows)
        replace(schema, windows=WINDOWS[:count]).save(windows)
        train_baselines(windows, SETTINGS, tmp_path / "baselines")
    assert contents(tmp_path / "baselines") == contents(trained)


def test_trees_that_are_not_refitted_for_each_window_go_on_as_well(
    windows_dir: Path, tmp_path: Path
) -> None:
    trees = SETTINGS.model_copy(
        update={"run": ["trees"], "trees": TREES.model_copy(update={"refit_every_windows": 2})}
    )
    train_baselines(windows_dir, trees, tmp_path / "whole")
    train_baselines(windows_dir, trees, tmp_path / "again")
    (tmp_path / "again/trees/all/predictions/w3.parquet").unlink()
    train_baselines(windows_dir, trees, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
