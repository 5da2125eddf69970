"""No snapshot looks ahead, and none is seen half-written."""

from pathlib import Path

import pytest
import torch

from recsys.config import InputError
from recsys.data.schema import Schema, Window
from recsys.distill.scoring import choose_snapshots
from recsys.distill.snapshots import (
    LookAheadError,
    Snapshot,
    check_no_look_ahead,
    drop_weights,
    has_weights,
    hash_weights,
    latest_before,
    list_snapshots,
    publish,
)
from recsys.distill.teacher import is_broken, is_worse, publication_turns
from tests.support.toy_stream import TEACHER

WINDOWS = [Window(f"w{i}", 100 * i, 100 * (i + 1), 10, 0) for i in range(4)]
SCHEMA = Schema("toy", [], [], ["all"], WINDOWS, 0.1, {})


def snapshot(index: int, high_water_mark: int | None = None, held_back: bool = False) -> Snapshot:
    mark = WINDOWS[index].end_ms if high_water_mark is None else high_water_mark
    return Snapshot(f"w{index}", f"w{index}", mark, 0.9, "hash", held_back)


def test_window_gets_the_newest_snapshot_of_its_past() -> None:
    chosen = choose_snapshots(SCHEMA, [snapshot(0), snapshot(1), snapshot(2), snapshot(3)])
    assert [None if s is None else s.name for s in chosen] == [None, "w0", "w1", "w2"]


def test_held_back_snapshot_never_scores() -> None:
    assert latest_before([snapshot(0), snapshot(1, held_back=True)], 200) == snapshot(0)


def test_snapshot_of_the_same_window_is_refused() -> None:
    with pytest.raises(LookAheadError, match="before the high-water mark"):
        check_no_look_ahead(snapshot(1), WINDOWS[1], SCHEMA)


def test_hand_made_snapshot_with_an_older_mark_is_refused() -> None:
    with pytest.raises(LookAheadError, match="on which it was trained"):
        choose_snapshots(SCHEMA, [snapshot(2, high_water_mark=100)])


def test_snapshot_of_other_data_is_refused() -> None:
    other = Snapshot("x", "x", 100, 0.9, "hash", False)
    with pytest.raises(InputError, match="not in the data"):
        choose_snapshots(SCHEMA, [other])


def test_publish_is_whole_or_absent(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path, snapshot(0), fail)
    assert list_snapshots(tmp_path) == []

    def save(folder: Path) -> None:
        (folder / "whole").write_text("x")

    publish(tmp_path, snapshot(0), save)
    assert list_snapshots(tmp_path) == [snapshot(0)]
    assert not (tmp_path / "w0" / "weights" / "half").exists()


def test_weights_stay_of_the_newest_that_may_score_and_what_all_were_stays(tmp_path: Path) -> None:
    snapshots = [snapshot(0), snapshot(1), snapshot(2), snapshot(3, held_back=True)]
    for one in snapshots:
        publish(tmp_path, one, lambda folder: (folder / "weights").touch())
    (tmp_path / "w0/weights").rename(tmp_path / "w0/weights.partial")  # as a killed process leaves
    drop_weights(tmp_path, keep=1)
    assert [has_weights(tmp_path, one) for one in snapshots] == [False, False, True, False]
    assert not list(tmp_path.rglob("*.partial"))
    assert list_snapshots(tmp_path) == snapshots


def test_broken_snapshot_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "w0").mkdir()
    (tmp_path / "w0" / "snapshot.json").write_text("{}")
    with pytest.raises(InputError, match=r"w0/snapshot\.json: not a snapshot"):
        list_snapshots(tmp_path)


def test_hash_sees_names_and_values_but_not_order() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert hash_weights({"a": a, "b": b}) == hash_weights({"b": b, "a": a})
    assert hash_weights({"a": a, "b": b}) != hash_weights({"a": b, "b": a})
    assert hash_weights({"step": torch.tensor(1.0)}) != hash_weights({"step": torch.tensor(2.0)})


@pytest.mark.parametrize(
    ("ne", "reference", "worse"),
    [(1.2, 1.0, True), (1.05, 1.0, False), (5.0, None, False), (float("nan"), 1.0, False)],
)
def test_hold_back(ne: float, reference: float | None, worse: bool) -> None:
    assert is_worse(ne, reference, allowed_increase=0.1) is worse


def test_cadence_by_windows_or_by_examples_since_the_last_one() -> None:
    history = [{"rows": rows} for rows in (40, 70, 10, 90, 100, 5)]
    every_two = TEACHER.model_copy(update={"snapshot_every_windows": 2})
    every_100 = TEACHER.model_copy(update={"snapshot_every_examples": 100})
    assert publication_turns(history, every_two) == [1, 3, 5]
    assert publication_turns(history, every_100) == [1, 3, 4]


@pytest.mark.parametrize(
    ("logloss", "weight", "broken"),
    [
        (0.3, 1.0, False),
        (float("nan"), 1.0, True),
        (0.3, float("nan"), True),
        (0.3, float("inf"), True),
    ],
)
def test_snapshot_with_a_nan_is_broken(logloss: float, weight: float, broken: bool) -> None:
    state = {"weight": torch.tensor([1.0, weight]), "step": torch.tensor(3)}
    assert is_broken({"rows": 5, "logloss": logloss}, state) is broken


def test_window_without_examples_breaks_nothing() -> None:
    assert not is_broken({"rows": 0, "logloss": float("nan")}, {"weight": torch.ones(2)})
