"""Rows are sorted on disk: whatever their order and however many fit in memory."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.data.names import EVENT_TIME
from recsys.data.sources.base import ROW
from recsys.data.sources.runs import KEY_EVERY_ROWS, BadRows, SortedRuns

ROWS = 6_000


def shuffled(times: int) -> pl.DataFrame:
    """Rows of so many different times, in the order of a log that is not sorted."""
    random = np.random.default_rng(times)
    return pl.DataFrame({EVENT_TIME: random.integers(0, times, ROWS), ROW: np.arange(ROWS)})


def sorted_runs(frame: pl.DataFrame, folder: Path, rows: int) -> SortedRuns:
    runs = SortedRuns(folder)
    for block in frame.iter_slices(rows):
        runs.add(block)
    return runs


@pytest.mark.parametrize("times", [1, 9, 10**9])
@pytest.mark.parametrize("block", [700, ROWS])
def test_ranges_give_all_rows_in_order(tmp_path: Path, times: int, block: int) -> None:
    frame = shuffled(times)
    ranges = list(sorted_runs(frame, tmp_path, block).ranges(1_500))
    assert pl.concat(ranges).equals(frame.sort(EVENT_TIME, ROW))
    runs = -(-ROWS // block)
    assert len(ranges) > 1
    assert max(one.height for one in ranges) <= 1_500 + (runs + 1) * KEY_EVERY_ROWS


def test_an_hour_stays_whole(tmp_path: Path) -> None:
    frame = shuffled(100)
    ranges = list(sorted_runs(frame, tmp_path, 1_000).ranges(1_500, whole_ms=10))
    hours = [set(one[EVENT_TIME] // 10) for one in ranges]
    assert pl.concat(ranges).equals(frame.sort(EVENT_TIME, ROW))
    assert len(hours) > 1 and sum(map(len, hours)) == len(set().union(*hours))


def test_no_rows_are_one_empty_range(tmp_path: Path) -> None:
    runs = SortedRuns(tmp_path)
    runs.add(shuffled(5).clear())
    (only,) = runs.ranges(1_500)
    assert only.is_empty() and only.columns == [EVENT_TIME, ROW]


def test_bad_rows_come_in_their_order(tmp_path: Path) -> None:
    bad = BadRows(tmp_path)
    for rows in ([3, 5], [], [8]):
        bad.add(pl.DataFrame({"row": rows}, schema={"row": pl.Int64}))
    assert [one["row"].to_list() for one in bad.batches()] == [[3, 5, 8]]
