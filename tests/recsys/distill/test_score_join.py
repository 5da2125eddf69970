"""The join of the score log, against one that walks through every record in Python."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from recsys.data.schema import Window
from recsys.distill.score_log import SCORE_SCHEMA, ScoreConflictError, ScoreLog, WindowFacts
from recsys.distill.snapshots import LookAheadError, Snapshot

WINDOW = Window("w", 100, 200, 10, 50)
IDS = st.integers(0, 12)
MARKS = {"early": 90, "middle": 103, "late": 106}  # high-water marks; example i happens at 100 + i

Record = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What is in a log: files of records; ``by_hand``: one file."""

    files: list[list[Record]]
    by_hand: bool


@st.composite
def records(draw: st.DrawFn, snapshots: list[str]) -> list[Record]:
    """Records in any order of ids, some of them twice; a snapshot's logit of an example is nearly
    always the same."""
    found = []
    for example in draw(st.lists(IDS, max_size=10)):
        snapshot = draw(st.sampled_from(snapshots))
        other = draw(st.integers(0, 19)) == 0
        logit = float("nan") if example == 3 else example + len(snapshot) / 8 + other
        found.append(
            {
                "example_id": example,
                "logit": logit,
                "snapshot": snapshot,
                "high_water_mark": MARKS[snapshot],
                "staleness_ms": 100 + example - MARKS[snapshot],
            }
        )
    return found


@st.composite
def logs(draw: st.DrawFn) -> Written:
    snapshots = draw(st.sampled_from([["early"], ["early", "middle"], list(MARKS)]))
    by_hand = draw(st.booleans())
    return Written(
        draw(st.lists(records(snapshots), min_size=1, max_size=1 if by_hand else 3)), by_hand
    )


def write(folder: Path, written: Written) -> ScoreLog:
    """The log on disk, as somebody else might have written it: nothing sorted, nothing left out."""
    log = ScoreLog(folder)
    log.describe(
        None,
        [Snapshot(name, "w", mark, None, "hash", False) for name, mark in MARKS.items()],
    )
    (folder / "w").mkdir()
    names = (
        ["w.parquet"]
        if written.by_hand
        else [f"w/segment-{i:05d}.parquet" for i in range(len(written.files))]
    )
    for name, rows in zip(names, written.files, strict=True):
        pl.DataFrame(rows, schema=SCORE_SCHEMA).write_parquet(folder / name, row_group_size=3)
    if not written.by_hand:
        log.finish(WindowFacts("w", 0, 0, None, None, None, [], {}))
    return log


def joined_by_hand(
    written: Written, examples: list[int]
) -> list[tuple[float | None, int | None]] | type[Exception]:
    """(score, staleness) of each example, or the error's class."""
    known: dict[int, list[Record]] = {example: [] for example in examples}
    for record in (record for rows in written.files for record in rows):
        if record["example_id"] in known:
            if record["high_water_mark"] > 100 + record["example_id"]:
                return LookAheadError
            known[record["example_id"]].append(record)
    for own in known.values():
        for name in MARKS:
            if len({str(record["logit"]) for record in own if record["snapshot"] == name}) > 1:
                return ScoreConflictError
    first = {example: own[0] for example, own in known.items() if own}
    return [
        (first[example]["logit"], first[example]["staleness_ms"])
        if example in first
        else (None, None)
        for example in examples
    ]


@pytest.mark.slow
@settings(max_examples=250, derandomize=True)
@given(written=logs(), examples=st.lists(IDS, unique=True, max_size=13))
def test_join_is_that_of_a_walk_through_every_record(written: Written, examples: list[int]) -> None:
    expected = joined_by_hand(written, examples)
    frame = pl.DataFrame({"example_id": examples}, schema={"example_id": pl.Int64})
    frame = frame.with_columns(
        event_time=100 + pl.col("example_id"), label_time=150 + pl.col("example_id")
    )
    with tempfile.TemporaryDirectory() as folder:
        log = write(Path(folder), written)
        try:
            joined = log.join(frame, WINDOW)
        except (LookAheadError, ScoreConflictError) as error:
            event(type(error).__name__)
            assert type(error) is expected
            return
    assert not isinstance(expected, type)
    event("some scored" if any(score is not None for score, _ in expected) else "none scored")
    assert joined.drop("score", "staleness_ms").equals(frame)
    assert joined["score"].dtype == pl.Float32
    # NaN as itself
    assert [str(score) for score in joined["score"]] == [str(score) for score, _ in expected]
    assert joined["staleness_ms"].to_list() == [staleness for _, staleness in expected]


@settings(max_examples=100, derandomize=True)
@given(
    first=st.integers(-3, 6),
    count=st.integers(2, 12),
    hole=st.none() | st.integers(-3, 12),
    examples=st.lists(IDS, max_size=8),
    in_order=st.booleans(),
)
def test_own_segment_with_ids_in_a_row_or_with_a_hole_gives_each_row_its_record(
    first: int, count: int, hole: int | None, examples: list[int], in_order: bool
) -> None:
    ids = [example for example in range(first, first + count) if example != hole]
    rows = sorted(set(examples)) if in_order else examples
    event(f"{'with' if set(rows) - set(ids) else 'no'} row without a record")
    scored = pl.DataFrame(
        {"example_id": ids, "logit": [example + 0.5 for example in ids], "staleness_ms": ids}
    )
    scored = scored.with_columns(snapshot=pl.lit("early"), high_water_mark=pl.lit(90)).select(
        list(SCORE_SCHEMA)
    )
    frame = pl.DataFrame({"example_id": rows}, schema={"example_id": pl.Int64})
    frame = frame.with_columns(
        event_time=100 + pl.col("example_id"), label_time=150 + pl.col("example_id")
    )
    with tempfile.TemporaryDirectory() as folder:
        log = ScoreLog(Path(folder))
        log.write_chunk("w", 0, scored)
        log.finish(WindowFacts("w", 0, 0, None, None, None, [], {}))
        joined = log.join(frame, WINDOW)
    assert joined.schema == frame.schema | {"score": pl.Float32, "staleness_ms": pl.Int64}
    assert joined.select(frame.columns).equals(frame)
    expected = [
        (example + 0.5, example + 10) if example in ids else (None, None) for example in rows
    ]
    assert joined.select("score", "staleness_ms").rows() == expected
