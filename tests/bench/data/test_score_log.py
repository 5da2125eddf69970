"""The bench of the score log: each joined score is the one appended, in memory that ten windows do
not raise."""

import math
from pathlib import Path

import polars as pl
import pytest

from bench.data.score_log import (
    LOG_DIR,
    STEPS,
    UNSCORED,
    Case,
    case_of,
    join,
    prepare,
    read_calls,
    report_lines,
    run_case,
    run_step,
)
from recsys.distill.score_log import ScoreLog

pytestmark = pytest.mark.ranks  # each step in a process of its own

ROWS, WINDOW_ROWS = 100_000, 10_000
MOST_MIB = 100  # of a process, above what its imports take


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A log that has been appended and joined."""
    made = case_of(tmp_path_factory.mktemp("bench"), ROWS, WINDOW_ROWS)
    assert run_case(made, seconds=float("inf"))
    return made


def test_every_row_whose_label_came_is_joined_with_the_score_that_it_was_given(case: Case) -> None:
    examples, _, joined = read_calls(case)
    assert joined.rows == examples.rows
    assert 0.9 * ROWS < joined.rows < ROWS  # the last labels come after the stream
    assert joined.wrong == 0
    assert joined.rows - joined.scored == pytest.approx(joined.rows / UNSCORED, rel=0.2)


def test_memory_does_not_grow_from_the_first_window_to_the_last(case: Case) -> None:
    for call in read_calls(case):
        before, _, end = call.peaks
        assert end - before < MOST_MIB, call.step


def test_the_table_has_bytes_rates_and_no_wrong_score(case: Case) -> None:
    cells = [cell.strip() for cell in report_lines([case])[-1].strip("|").split("|")]
    assert cells[:2] == ["100,000", "10"]
    assert 12.0 < float(cells[3]) < 20.0  # an id of 8 bytes and a logit of 4 cannot be packed
    assert cells[-1] == "0"


@pytest.fixture
def small(tmp_path: Path) -> Case:
    """Folders for three windows."""
    made = case_of(tmp_path, 3_000, 1_000)
    prepare(made)
    return made


def test_a_record_that_was_changed_is_counted_as_wrong(small: Case) -> None:
    assert run_step(small, "examples", math.inf)
    assert run_step(small, "append", math.inf)
    window = small.windows[1]
    segment = ScoreLog(small.folder / LOG_DIR).segments(window.name)[0]
    pl.read_parquet(segment).with_columns(pl.col("logit") + 1).write_parquet(segment)
    counts = [join(small, one) for one in small.windows]
    assert counts[0].wrong == 0
    assert counts[1].scored > counts[1].wrong > 0
    records = pl.read_parquet(segment).height
    # Those whose label came in time
    assert sum(one.wrong for one in counts) == pytest.approx(records, rel=0.2)


def test_a_step_that_was_stopped_goes_on_at_its_next_window(small: Case) -> None:
    for step in STEPS:
        assert [run_step(small, step, seconds=0.0) for _ in small.windows] == [False, False, True]
        assert run_step(small, step, seconds=0.0)
        assert [call.done for call in read_calls(small) if call.step == step] == [1, 2, 3]
    stopped = [call for call in read_calls(small) if call.step == "join"]
    whole = [join(small, window) for window in small.windows]
    assert [(call.rows, call.scored, call.wrong) for call in stopped] == [
        (one.rows, one.scored, 0) for one in whole
    ]
