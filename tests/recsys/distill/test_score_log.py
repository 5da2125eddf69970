"""The score log: once by key, whole or absent, and never of a snapshot that knows its example's
time."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.schema import Window
from recsys.distill import score_log
from recsys.distill.score_log import (
    SCORE_SCHEMA,
    ScoreConflictError,
    ScoreLog,
    WindowFacts,
    check_snapshots_of_log,
)
from recsys.distill.snapshots import LookAheadError, Snapshot
from recsys.files import file_hash
from tests.support.files import flip_a_bit

WINDOW = Window("w1", 100, 200, 10, 50)
FACTS = WindowFacts("w1", 10, 10, "w0", 5.0, 9, [10], {})


def records(
    ids: list[int], logit: float = 0.5, snapshot: str = "w0", mark: int = 100
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": ids,
            "logit": [logit + i for i in ids],
            "snapshot": [snapshot] * len(ids),
            "high_water_mark": [mark] * len(ids),
            "staleness_ms": ids,
        }
    ).cast(SCORE_SCHEMA)  # type: ignore[arg-type]


def examples(ids: list[int], delay: int = 20) -> pl.DataFrame:
    """Examples of the window; number i happens at time 100 + i."""
    frame = pl.DataFrame({"example_id": ids}, schema={"example_id": pl.Int64})
    return frame.with_columns(
        event_time=100 + pl.col("example_id"), label_time=100 + delay + pl.col("example_id")
    )


def snapshot(name: str = "w0", weights_hash: str = "hash") -> Snapshot:
    return Snapshot(name, "w0", 100, 0.9, weights_hash, False)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_join_gives_each_example_its_score_in_the_order_of_the_examples(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    log.write_chunk("w1", 0, records([1, 2, 3]))
    log.write_chunk("w1", 1, records([7, 5]))
    log.finish(FACTS)
    joined = log.join(examples([7, 4, 1, 3]), WINDOW)
    assert joined["score"].to_list() == [7.5, None, 1.5, 3.5]
    assert joined["staleness_ms"].to_list() == [7, None, 1, 3]
    assert log.join(examples([]), WINDOW).height == 0


def test_first_write_wins_and_repetitions_change_nothing(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    log.finish(FACTS)
    assert log.write_chunk("w1", 0, records([1, 2, 2])) == 2
    before = contents(tmp_path)
    again = pl.concat([records([2, 1]), records([1], logit=9.0, snapshot="other")])
    assert log.write_chunk("w1", 1, again) == 0
    (tmp_path / "w1/segment-00001.parquet").unlink()
    assert contents(tmp_path) == before
    assert log.write_chunk("w1", 1, records([1, 4])) == 1
    assert log.join(examples([1, 4]), WINDOW)["score"].to_list() == [1.5, 4.5]


def test_of_several_records_of_an_example_the_first_counts(tmp_path: Path) -> None:
    twice = pl.concat([records([2, 1]), records([1, 2], logit=9.0, snapshot="other")])
    log = ScoreLog(tmp_path / "written")
    assert log.write_chunk("w1", 0, twice) == 2
    log.finish(FACTS)
    by_hand = tmp_path / "by hand"
    by_hand.mkdir()
    twice.write_parquet(by_hand / "w1.parquet")
    for one in (log, ScoreLog(by_hand)):
        assert one.join(examples([1, 2]), WINDOW)["score"].to_list() == [1.5, 2.5]


def test_two_logits_by_one_snapshot_are_an_error_that_names_the_example(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    log.write_chunk("w1", 0, records([1, 2]))
    before = contents(tmp_path)
    with pytest.raises(ScoreConflictError, match="example 2 has several logits by snapshot w0"):
        log.write_chunk("w1", 1, records([3, 2], logit=0.75))
    with pytest.raises(ScoreConflictError, match="example 4"):
        log.write_chunk("w1", 1, pl.concat([records([4]), records([4], logit=0.25)]))
    assert contents(tmp_path) == before


def test_hand_made_log_with_conflicts_is_refused_by_its_reader(tmp_path: Path) -> None:
    pl.concat([records([1]), records([1], logit=0.25)]).write_parquet(tmp_path / "w1.parquet")
    with pytest.raises(ScoreConflictError, match="example 1"):
        ScoreLog(tmp_path).join(examples([1]), WINDOW)


def test_hand_made_log_may_nest_columns_miss_ids_and_number_its_snapshots(tmp_path: Path) -> None:
    huge = 2**53 + 1  # no float64
    nested = pl.struct(example_id=pl.lit(-1), other=pl.lit(0)).alias("debug")
    frame = (
        records([huge, 7, 1])
        .select(nested, pl.all())
        .with_columns(snapshot=pl.lit(3), logit=pl.Series([0.25, 0.5, 0.75], dtype=pl.Float32))
    )
    without_id = frame[:1].with_columns(example_id=pl.lit(None, pl.Int64))
    pl.concat([without_id, frame]).write_parquet(tmp_path / "w1.parquet")
    wanted = examples([1, 2, 7, huge, huge - 1]).with_columns(event_time=pl.lit(200))
    joined = ScoreLog(tmp_path).join(wanted, WINDOW)
    assert joined["score"].to_list() == [0.75, None, 0.5, 0.25, None]


@pytest.mark.parametrize("by_hand", [True, False])
def test_score_that_knows_its_examples_time_is_look_ahead(by_hand: bool, tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    scored = pl.concat([records([1, 2, 3]), records([4], mark=105)])
    if by_hand:
        scored.write_parquet(tmp_path / "w1.parquet")
    else:
        log.write_chunk("w1", 0, scored)
        log.finish(FACTS)
    assert log.join(examples([1, 2, 3]), WINDOW)["score"].null_count() == 0
    with pytest.raises(
        LookAheadError, match=r"example 4 of time 104 is scored by snapshot w0.*105 is after it"
    ):
        log.join(examples([1, 2, 3, 4]), WINDOW)


def test_mark_at_the_examples_own_time_is_no_look_ahead(tmp_path: Path) -> None:
    records([5], mark=105).write_parquet(tmp_path / "w1.parquet")
    assert ScoreLog(tmp_path).join(examples([5]), WINDOW)["score"].to_list() == [5.5]


def test_score_without_a_mark_is_refused(tmp_path: Path) -> None:
    unmarked = records([5]).with_columns(high_water_mark=pl.lit(None, dtype=pl.Int64))
    pl.concat([records([4]), unmarked]).write_parquet(tmp_path / "w1.parquet")
    with pytest.raises(InputError, match=r"w1.parquet: example 5 has no high_water_mark"):
        ScoreLog(tmp_path).join(examples([4, 5]), WINDOW)


def test_record_of_a_snapshot_that_the_log_does_not_name_is_refused(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    log.describe(None, [snapshot()])
    good = records([1, 2])
    for scored in (records([3], snapshot="forged"), records([3], mark=90)):
        for whole in (scored, pl.concat([good, scored])):
            whole.write_parquet(tmp_path / "w1.parquet")
            with pytest.raises(InputError, match=r"is not one that .*log\.json names"):
                ScoreLog(tmp_path).join(examples([1, 2, 3]), WINDOW)


def test_missing_column_is_named(tmp_path: Path) -> None:
    records([1]).drop("high_water_mark").write_parquet(tmp_path / "w1.parquet")
    with pytest.raises(InputError, match="no column 'high_water_mark'"):
        ScoreLog(tmp_path).join(examples([1]), WINDOW)


def test_example_waits_for_its_score_so_long_and_then_goes_without(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    log.describe(30, [snapshot()])
    waited = log.join(examples([1, 2], delay=30), WINDOW)
    assert waited["score"].null_count() == waited.height == 2
    with pytest.raises(InputError, match="run the augment stage"):
        log.join(examples([1, 2], delay=29), WINDOW)
    ScoreLog(tmp_path).describe(None, [snapshot()])
    with pytest.raises(InputError, match="run the augment stage"):
        ScoreLog(tmp_path).join(examples([1, 2], delay=1000), WINDOW)


def test_window_that_is_not_done_is_not_read(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    log.write_chunk("w1", 0, records([1]))
    with pytest.raises(InputError, match="run the augment stage"):
        log.join(examples([1]), WINDOW)


def test_segment_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ScoreLog(tmp_path)

    def fail(partial: Path, path: Path) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(score_log, "publish_file", fail)
        with pytest.raises(OSError, match="disk full"):
            log.write_chunk("w1", 0, records([1]))
    assert log.segments("w1") == []
    log.write_chunk("w1", 0, records([1]))
    assert [segment.name for segment in log.segments("w1")] == ["segment-00000.parquet"]


@pytest.mark.parametrize(
    ("snapshots", "withdrawn", "message"),
    [
        ([], set(), "not a snapshot of this teacher"),
        ([snapshot(weights_hash="other")], set(), "not a snapshot of this teacher"),
        ([snapshot()], {"hash"}, "is withdrawn; run the augment stage again"),
    ],
)
def test_scores_of_a_snapshot_that_is_gone_changed_or_withdrawn_are_refused(
    snapshots: list[Snapshot], withdrawn: set[str], message: str, tmp_path: Path
) -> None:
    log = ScoreLog(tmp_path)
    log.describe(None, [snapshot()])
    log.write_chunk("w1", 0, records([1]))
    log.finish(FACTS)
    check_snapshots_of_log(log, [snapshot()], set())
    with pytest.raises(InputError, match=f"windows w1 are scored by snapshot w0.*{message}"):
        check_snapshots_of_log(log, snapshots, withdrawn)


def test_a_record_has_a_logit_per_task_and_readers_take_theirs(tmp_path: Path) -> None:
    both = records([1, 2, 3]).with_columns(logit_conversion=pl.col("logit") - 9)
    log = ScoreLog(tmp_path, ["logit", "logit_conversion"])
    assert log.write_chunk("w1", 0, both) == 3
    log.finish(FACTS)
    found = {
        name: ScoreLog(tmp_path, columns).join(examples([3, 1]), WINDOW)
        for name, columns in {
            "click": ["logit"],
            "conversion": ["logit_conversion"],
            "both": ["logit", "logit_conversion"],
        }.items()
    }
    assert found["click"]["score"].to_list() == found["both"]["score"].to_list() == [3.5, 1.5]
    assert found["conversion"]["score_conversion"].to_list() == [-5.5, -7.5]
    assert found["both"]["score_conversion"].to_list() == [-5.5, -7.5]
    assert "score" not in found["conversion"].columns
    with pytest.raises(ScoreConflictError, match="example 2 has several logits"):
        log.write_chunk(
            "w1",
            1,
            both.filter(pl.col("example_id") == 2).with_columns(logit_conversion=pl.lit(0.0)),
        )
    with pytest.raises(InputError, match="no column 'logit_cart'"):
        ScoreLog(tmp_path, ["logit", "logit_cart"]).join(examples([1]), WINDOW)


def test_look_ahead_is_refused_whichever_task_is_read(tmp_path: Path) -> None:
    records([4], mark=105).rename({"logit": "logit_conversion"}).write_parquet(
        tmp_path / "w1.parquet"
    )
    with pytest.raises(LookAheadError, match=r"example 4 of time 104"):
        ScoreLog(tmp_path, ["logit_conversion"]).join(examples([4]), WINDOW)


def test_a_segment_is_never_replaced_by_a_smaller_one(tmp_path: Path) -> None:
    """As a second run at once would: it drops what the first has written, and has nothing left."""
    log = ScoreLog(tmp_path)
    log.write_chunk("w1", 0, records([1, 2, 3]))
    before = contents(tmp_path)
    for again in ([1, 2, 3], [4]):
        with pytest.raises(InputError, match=r"segment-00000.parquet: holds 3 records, and [01] "):
            log.write_chunk("w1", 0, records(again))
    assert contents(tmp_path) == before


def done_log(folder: Path) -> Path:
    """A log of one window that is done, with the hash of its segment; the segment."""
    log = ScoreLog(folder)
    log.write_chunk("w1", 0, records([1, 2, 3]))
    (segment,) = log.segments("w1")
    log.finish(replace(FACTS, segments={segment.name: file_hash(segment)}))
    return segment


def test_a_segment_that_is_gone_or_changed_is_named_before_it_is_joined(tmp_path: Path) -> None:
    segment = done_log(tmp_path)
    assert ScoreLog(tmp_path).join(examples([1]), WINDOW)["score"].to_list() == [1.5]
    flip_a_bit(segment)
    with pytest.raises(InputError, match=r"segment-00000.parquet: is damaged.*towerflow augment"):
        ScoreLog(tmp_path).join(examples([1]), WINDOW)
    segment.unlink()
    with pytest.raises(InputError, match=r"segment-00000.parquet: is missing.*towerflow augment"):
        ScoreLog(tmp_path).join(examples([1]), WINDOW)


@pytest.mark.parametrize("name", ["log.json", "w1/window.json"])
@pytest.mark.parametrize("text", ["", "[1]", '{"window": ', '{"colour": 1}'])
def test_damaged_json_of_a_log_is_named(name: str, text: str, tmp_path: Path) -> None:
    done_log(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: is damaged .*towerflow augment"):
        ScoreLog(tmp_path).join(examples([1]), WINDOW)


def test_staleness_is_computed_and_not_believed(tmp_path: Path) -> None:
    claims = records([5]).with_columns(staleness_ms=pl.lit(-9999, dtype=pl.Int64))
    claims.write_parquet(tmp_path / "w1.parquet")
    assert ScoreLog(tmp_path).join(examples([5]), WINDOW)["staleness_ms"].to_list() == [5]


@pytest.mark.parametrize("times", [[101, 150], [150, 101]])
def test_an_id_at_two_times_may_not_be_scored_after_the_first(
    times: list[int], tmp_path: Path
) -> None:
    records([1], mark=120).write_parquet(tmp_path / "w1.parquet")
    twice = pl.DataFrame({"example_id": [1, 1], "event_time": times, "label_time": [190, 190]})
    with pytest.raises(LookAheadError, match="example 1 of time 101"):
        ScoreLog(tmp_path).join(twice, WINDOW)
    records([1], mark=100).write_parquet(tmp_path / "w1.parquet")
    joined = ScoreLog(tmp_path).join(twice, WINDOW)
    assert joined["staleness_ms"].to_list() == [time - 100 for time in times]


@pytest.mark.parametrize("mark", [100.5, float("nan"), float("inf"), "100"])
def test_a_mark_that_is_no_whole_millisecond_is_refused(mark: float | str, tmp_path: Path) -> None:
    marked = records([5]).with_columns(high_water_mark=pl.lit(mark))
    marked.write_parquet(tmp_path / "w1.parquet")
    with pytest.raises(InputError, match=r"example 5 has the high_water_mark .*whole milliseconds"):
        ScoreLog(tmp_path).join(examples([5]), WINDOW)


def test_a_whole_mark_may_be_a_float(tmp_path: Path) -> None:
    marked = records([5]).with_columns(high_water_mark=pl.lit(100.0))
    marked.write_parquet(tmp_path / "w1.parquet")
    assert ScoreLog(tmp_path).join(examples([5]), WINDOW)["score"].to_list() == [5.5]


def test_a_mark_in_seconds_is_refused(tmp_path: Path) -> None:
    now = 1_700_000_000_000
    records([5], mark=now // 1000).write_parquet(tmp_path / "w1.parquet")
    example = examples([5]).with_columns(event_time=pl.lit(now))
    with pytest.raises(InputError, match="high_water_mark 1700000000, more than ten years"):
        ScoreLog(tmp_path).join(example, WINDOW)


@pytest.mark.parametrize(("rows", "refused"), [(100, True), (99, False)])
def test_probabilities_in_the_place_of_logits_are_refused(
    rows: int, refused: bool, tmp_path: Path
) -> None:
    ids = list(range(rows))
    probabilities = pl.Series([i / rows for i in ids], dtype=pl.Float32)
    scored = records(ids).with_columns(logit=probabilities)
    scored.write_parquet(tmp_path / "w1.parquet", row_group_size=10)
    if not refused:
        assert ScoreLog(tmp_path).join(examples([5]), WINDOW)["score"].null_count() == 0
        return
    with pytest.raises(InputError, match=r"w1.parquet: all values of logit lie between 0 and 1"):
        ScoreLog(tmp_path).join(examples([5]), WINDOW)


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "w1.parquet").write_text("example_id,logit")
    with pytest.raises(InputError, match=r"w1.parquet: is not a Parquet file"):
        ScoreLog(tmp_path).join(examples([5]), WINDOW)
