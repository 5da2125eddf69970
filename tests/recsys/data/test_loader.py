"""The loader's batches: the same global batch on any number of ranks, each example once."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.config import InputError
from recsys.data.ingest import IngestReport
from recsys.data.loader import Batch, WindowReader, batch_of
from recsys.data.schema import CategoricalFeature, Schema
from recsys.distill.score_log import ScoreLog
from tests.support.files import flip_a_bit

Stream = tuple[Path, Path, IngestReport]


def real_rows(shares: list[Batch]) -> list[tuple[object, ...]]:
    """The weighted rows of one global batch, in order."""
    rows: list[tuple[object, ...]] = []
    for share in shares:
        keep = share.weight == 1
        ids = share.sparse.values().view(len(share.sparse.keys()), -1)[:, keep].T.tolist()
        dense = share.dense[keep].tolist()
        rows += zip(
            share.example_id[keep].tolist(),
            share.label[keep].tolist(),
            map(tuple, ids),
            map(tuple, dense),
            strict=True,
        )
    return rows


@settings(
    max_examples=8,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch_size=st.integers(400, 3_000),
    world_size=st.integers(2, 7),
    by_label=st.booleans(),
    domain=st.none() | st.just(1),
)
def test_global_batch_does_not_depend_on_world_size(
    small_stream: Stream, batch_size: int, world_size: int, by_label: bool, domain: int | None
) -> None:
    reader = WindowReader(small_stream[0])
    read = reader.label_batches if by_label else reader.event_batches
    window = reader.windows[1]
    alone = list(read(window, batch_size, 0, 1, domain))
    ranks = [list(read(window, batch_size, rank, world_size, domain)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for index, whole in enumerate(alone):
        shares = [batches[index] for batches in ranks]
        assert {len(share.label) for share in shares} == {-(-whole.global_rows // world_size)}
        assert {share.global_rows for share in shares} == {len(whole.label)}
        assert real_rows(shares) == real_rows([whole])


def test_event_batches_give_each_example_once_in_time_order(small_stream: Stream) -> None:
    reader = WindowReader(small_stream[0])
    for window in reader.windows:
        batches = list(reader.event_batches(window, 700, 0, 1))
        times = torch.cat([batch.event_time for batch in batches])
        for first in (1, len(batches)):
            rest = [
                batch.example_id.tolist()
                for batch in reader.event_batches(window, 700, 0, 1, first_batch=first)
            ]
            assert rest == [batch.example_id.tolist() for batch in batches[first:]]
        assert len(times) == window.rows == reader.rows(window)
        assert bool((times.diff() >= 0).all())
        assert window.start_ms <= int(times[0]) and int(times[-1]) < window.end_ms
        assert sum(reader.rows(window, domain) for domain in range(3)) == window.rows


def test_label_slices_visit_each_known_label_once(small_stream: Stream) -> None:
    reader = WindowReader(small_stream[0])
    everything = pl.read_parquet(small_stream[0] / "*" / "part-*.parquet")
    label_times = dict(
        zip(everything["example_id"].to_list(), everything["label_time"].to_list(), strict=True)
    )
    seen: list[int] = []
    for window in reader.windows:
        batches = [b.example_id.tolist() for b in reader.label_batches(window, 700, 0, 1)]
        later = reader.batches(reader.label_examples(window), 700, 0, 1, first_batch=1)
        assert [batch.example_id.tolist() for batch in later] == batches[1:]
        ids = [i for batch in batches for i in batch]
        times = [label_times[i] for i in ids]
        assert times == sorted(times)
        assert all(window.start_ms <= time < window.end_ms for time in times)
        seen += ids
    known = [i for i, time in label_times.items() if time < reader.windows[-1].end_ms]
    assert sorted(seen) == sorted(known)
    assert len(known) > 0.9 * len(label_times)


def test_scores_meet_their_examples(small_stream: Stream, tmp_path: Path) -> None:
    reader = WindowReader(small_stream[0])
    window = reader.windows[0]
    ids = pl.read_parquet(small_stream[0] / window.name / "part-*.parquet")["example_id"]
    scored = ids.filter(ids % 2 == 0)
    scores = pl.DataFrame(
        {"example_id": scored, "logit": scored.cast(pl.Float32) / 10}
    ).with_columns(
        snapshot=pl.lit("old"),
        high_water_mark=pl.lit(window.start_ms, dtype=pl.Int64),
        staleness_ms=pl.col("example_id") + 1,
    )
    scores.write_parquet(tmp_path / f"{window.name}.parquet")
    for batch in reader.label_batches(window, 512, 0, 1, scores=ScoreLog(tmp_path)):
        even = batch.example_id % 2 == 0
        assert torch.isnan(batch.score[~even]).all()
        torch.testing.assert_close(batch.score[even], batch.example_id[even].float() / 10)
        staleness = batch.event_time - window.start_ms  # whatever the log claims
        assert batch.staleness_ms.tolist() == torch.where(even, staleness, 0).tolist()
    with pytest.raises(InputError, match="augment"):
        list(reader.label_batches(reader.windows[1], 512, 0, 1, scores=ScoreLog(tmp_path)))


def test_missing_values_and_lists() -> None:
    schema = Schema(
        "t",
        ["x"],
        [CategoricalFeature("a", 9), CategoricalFeature("b", 9, "list")],
        ["d", "e"],
        [],
        0.1,
        {},
    )
    frame = pl.DataFrame(
        {
            "x": [1.5, None, float("nan")],
            "a": [1, 2, 3],
            "b": [[4, 5], [], [6]],
            "example_id": [0, 1, 2],
            "event_time": [0, 1, 2],
            "label_time": [0, 1, 2],
            "domain": [0, 1, 1],
            "group": [0, 0, 0],
            "label": [0.0, 1, 0],
        }
    )
    batch = batch_of(frame, schema, np.ones(3, dtype=np.float32), 3)
    assert batch.dense.tolist() == [
        [1.5, 0.0, 1.0, 0.0],
        [0.0, 1.0, 0.0, 1.0],
        [0.0, 1.0, 0.0, 1.0],
    ]
    assert batch.sparse.keys() == ["a", "b"]
    assert batch.sparse.values().tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.sparse.lengths().tolist() == [1, 1, 1, 2, 0, 1]
    assert bool(torch.isnan(batch.score).all())


def test_log_without_dense_features_has_the_domains_alone() -> None:
    schema = Schema("t", [], [CategoricalFeature("a", 9)], ["d", "e"], [], 0.1, {})
    meta = {name: [0, 1] for name in ("example_id", "event_time", "label_time", "group")}
    frame = pl.DataFrame({"a": [1, 2], "domain": [1, 0], "label": [0.0, 1], **meta})
    batch = batch_of(frame, schema, np.ones(2, dtype=np.float32), 2)
    assert batch.dense.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert batch.dense.dtype == torch.float32
    assert batch.dense.shape[1] == schema.dense_width


def test_no_schema_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the ingest stage"):
        WindowReader(tmp_path)


def test_a_part_that_is_not_the_manifests_is_named_before_it_is_read(
    small_stream: Stream, tmp_path: Path
) -> None:
    windows = tmp_path / "windows"
    shutil.copytree(small_stream[0], windows)
    reader = WindowReader(windows)
    first, second, *_ = reader.windows
    part = windows / first.name / "part-00000.parquet"
    next(iter(reader.label_batches(first, 512, 0, 1)))
    flip_a_bit(part)  # after it was read once: its state is another
    for batches in (reader.label_batches, reader.event_batches):
        with pytest.raises(InputError, match=r"part-00000.parquet: is damaged.*towerflow ingest"):
            next(iter(batches(first, 512, 0, 1)))
    shutil.copyfile(windows / second.name / part.name, part)
    with pytest.raises(InputError, match=r"part-00000.parquet: is damaged or from another run"):
        next(iter(reader.event_batches(first, 512, 0, 1)))
    part.unlink()
    with pytest.raises(InputError, match=r"part-00000.parquet: is missing"):
        next(iter(reader.event_batches(first, 512, 0, 1)))
    (part.parent / "manifest.json").write_text('{"parts": [1]}')
    with pytest.raises(InputError, match=r"manifest.json: is damaged .*towerflow ingest"):
        next(iter(reader.event_batches(first, 512, 0, 1)))
