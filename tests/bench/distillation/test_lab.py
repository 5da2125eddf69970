"""The experiments give students the scores they say they do, and pair what they compare."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.distillation.cost import Costs
from bench.distillation.lab import Lab, Scores, delayed
from bench.distillation.results import change, interval, write_section
from recsys.data.schema import Schema, Window
from recsys.distill.score_log import ScoreLog
from recsys.distill.scoring import WindowPlan
from recsys.distill.snapshots import Snapshot

ROWS = 600


def _plan(index: int, snapshot: str | None) -> WindowPlan:
    window = Window(
        name=f"w{index}", start_ms=index, end_ms=index + 1, rows=1, max_label_delay_ms=0
    )
    known = (
        None
        if snapshot is None
        else Snapshot(snapshot, snapshot, index, 0.9, "hash", held_back=False)
    )
    return WindowPlan(window, known, "key")


@pytest.mark.parametrize(
    ("lag", "expected"),
    [(0, [None, "a", "b", "c"]), (1, [None, "a", "a", "b"]), (5, [None, "a", "a", "a"])],
)
def test_a_late_teacher_is_that_of_earlier_windows_and_never_a_newer_one(
    lag: int, expected: list[str | None]
) -> None:
    plans = [_plan(index, name) for index, name in enumerate([None, "a", "b", "c"])]
    late = delayed(plans, lag)
    assert [None if plan.snapshot is None else plan.snapshot.name for plan in late] == expected
    assert [plan.window for plan in late] == [plan.window for plan in plans]


def test_a_biased_log_is_one_that_students_can_read_and_holds_the_ratio(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "shifted", 1, ROWS, 1, tmp_path)
    lab.make_windows()
    lab.prepare(Scores(truth=True, ratio=2.0))
    window = Schema.load(lab.windows).windows[3]
    truth = pl.read_parquet(lab.folder / "oracle" / f"{window.name}.parquet")
    examples = pl.read_parquet(
        lab.windows / window.name / "*.parquet", columns=["example_id", "event_time", "label_time"]
    )
    joined = (
        ScoreLog(lab.folder / "scores-truth-2").join(examples, window).join(truth, on="example_id")
    )
    scored = 1.0 / (1.0 + np.exp(-joined["score"].to_numpy()))
    np.testing.assert_allclose(
        scored, np.minimum(2.0 * joined["probability"].to_numpy(), 1 - 1e-6), rtol=1e-4
    )
    assert (joined["staleness_ms"] == joined["event_time"] - window.start_ms).all()


def test_differences_are_paired_by_seed() -> None:
    levels = [0.8, 0.9, 1.0]  # seeds differ more than arms
    found = [{"plain": {"all": {"ne": ne}}, "arm": {"all": {"ne": 0.99 * ne}}} for ne in levels]
    assert change(found, "arm", "plain").mean == pytest.approx(-1.0)
    assert change(found, "arm", "plain").high == pytest.approx(-1.0)


def test_interval_is_students() -> None:
    # T of 0.975 at 3 degrees of freedom is 3.182, the standard error 0.6455
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert (found.low, found.high) == (
        pytest.approx(2.5 - 3.182 * 0.6455, abs=1e-3),
        pytest.approx(4.554, abs=1e-3),
    )
    assert interval([1.0]).p is None


def test_a_section_takes_its_own_place_and_leaves_the_others(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    for section, text in (("a", "one"), ("b", "two"), ("a", "three")):
        write_section(report, "Title", section, [text])
    text = report.read_text()
    assert text.startswith("# Title\n")
    assert text.split("\n## ")[1:] == ["a\n\nthree\n", "b\n\ntwo\n"]


def test_one_teacher_is_paid_once_and_a_peer_by_each_student() -> None:
    costs = Costs(teacher=30.0, scoring=10.0, distilled=1.0, co_distilled=31.0, plain=1.0)
    assert costs.external(students=4, share=0.5) == 30 + 10 + 4 * 0.5
    assert costs.separate(students=4, share=0.5) == 4 * 0.5 * 31
