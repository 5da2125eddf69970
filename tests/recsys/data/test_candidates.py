"""Candidates are encoded as rows of the log at their times would be, and change nothing of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.ingest import ingest
from recsys.data.schema import CANDIDATES_DIR, Schema
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.candidates import FIRST_ID

HOUR_MS = 3_600_000
START_MS = 1_711_929_600_000
TABLE: dict[str, Any] = {
    "file_format": "parquet",
    "time": {"column": "ms", "unit": "ms", "label_delay_s": 900},
    "label": "clicked",
    "domain": {"column": "page", "values": {"a": "a", "b": "b"}},
    "dense": ["price"],
    "categorical": [
        {"column": "item", "table_rows": 97},
        {"column": "user", "table_rows": 50, "encoding": {"kind": "vocabulary", "min_count": 2}},
    ],
    "counters": [{"by": ["item"], "hours": [2, 5], "bin_minutes": 10}],
    "history": {"user": "user", "item": "item", "length": 3, "table_rows": 97},
}


def rows(seed: int, count: int = 600, hours: int = 12) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "ms": START_MS + np.sort(random.integers(0, hours * HOUR_MS, count)),
            "user": random.integers(0, 25, count),
            "item": random.integers(0, 15, count),
            "page": random.choice(["a", "b"], count),
            "price": random.lognormal(1.0, 1.0, count).round(3),
            "clicked": random.integers(0, 2, count),
        }
    )


def taken(
    folder: Path,
    log: pl.DataFrame,
    candidates: pl.DataFrame | None,
    memory_gb: float = 1.0,
    **changes: Any,
) -> Path:
    """The windows of ``log``, of four hours each."""
    folder.mkdir(parents=True)
    log.write_parquet(folder / "log.parquet")
    table = TABLE | {"files": ["log.parquet"]} | changes
    if candidates is not None:
        candidates.write_parquet(folder / "candidates.parquet")
        table["candidates"] = {"files": ["candidates.parquet"]}
    data = DataSettings(
        dataset="d", root=str(folder), window_hours=4, rows_per_part=64, memory_gb=memory_gb
    )
    dataset = DatasetSettings.model_validate({"format": "table", "table": table})
    ingest(data, dataset, folder / "windows", folder / "oracle")
    return folder / "windows"


def parts(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "*/part-*.parquet").sort("event_time", "example_id")


@pytest.mark.parametrize("memory_gb", [1.0, 0.00006])
def test_the_logs_own_files_stay_the_same(tmp_path: Path, memory_gb: float) -> None:
    without = taken(tmp_path / "without", rows(0), None, memory_gb)
    both = taken(tmp_path / "with", rows(0), rows(1).drop("clicked"), memory_gb)
    files = {p.relative_to(both): p.read_bytes() for p in both.rglob("*") if p.is_file()}
    own = {name: text for name, text in files.items() if name.parts[0] != CANDIDATES_DIR}
    kept = {p.relative_to(without): p.read_bytes() for p in without.rglob("*") if p.is_file()}
    assert own == kept
    assert len(own) < len(files)


@pytest.mark.parametrize("memory_gb", [1.0, 0.00006])
def test_a_candidate_has_the_features_of_a_row_of_the_log_at_its_time(
    tmp_path: Path, memory_gb: float
) -> None:
    """For each of some candidates, a log that has it as one more row: nothing in the row's own bin
    counts, so the row may not change what it is itself given."""
    log, candidates = rows(0), rows(1, 40, 13).with_columns(clicked=pl.lit(0, dtype=pl.Int64))
    # Some of an item that the log does not have
    candidates = candidates.with_columns(
        item=pl.when(pl.int_range(pl.len()) % 5 == 0).then(77).otherwise("item")
    )
    found = parts(taken(tmp_path / "all", log, candidates, memory_gb) / CANDIDATES_DIR)
    inside = candidates.filter(pl.col("ms") < START_MS + 12 * HOUR_MS)
    assert found.height == inside.height < candidates.height
    assert (found["example_id"] >= FIRST_ID).all()
    assert found["example_id"].n_unique() == found.height
    assert found["label"].null_count() == found.height
    # The first window's vocabulary, of users, would count the further row
    not_alike = ("example_id", "group", "label", "label_time", "user")
    features = [name for name in found.columns if name not in not_alike]
    assert {"item", "price", "history", "item_age", "item_log_rate_5h"} <= set(features)
    for place in range(0, inside.height, 3):
        one = inside[[place]]
        more = pl.concat([log, one]).sort("ms", maintain_order=True)
        of_log = parts(taken(tmp_path / str(place), more, None))
        index = more.with_row_index().filter(
            (pl.col("ms") == one["ms"][0])
            & (pl.col("user") == one["user"][0])
            & (pl.col("price") == one["price"][0])
        )["index"][0]
        same = of_log.filter(pl.col("example_id") == index)
        assert found[[place]].select(features).equals(same.select(features)), place


def test_candidates_stand_in_the_windows_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gap = (pl.col("ms") < START_MS + 4 * HOUR_MS) | (pl.col("ms") >= START_MS + 8 * HOUR_MS)
    early = rows(1).with_columns(pl.col("ms") - 2 * HOUR_MS).drop("clicked")
    windows = taken(tmp_path / "log", rows(0).filter(gap), early)
    schema, own = Schema.load(windows), Schema.load(windows / CANDIDATES_DIR)
    assert [window.name for window in own.windows] == [window.name for window in schema.windows]
    for window in own.windows:
        folder = windows / CANDIDATES_DIR / window.name
        within = pl.col("ms").is_between(window.start_ms, window.end_ms, closed="left")
        assert window.rows == early.filter(within).height > 0
        found = pl.read_parquet(folder / "part-*.parquet")["event_time"]
        assert found.is_between(window.start_ms, window.end_ms, closed="left").all()
        manifest = json.loads((folder / "manifest.json").read_text())
        assert sorted(manifest["parts"]) == sorted(p.name for p in folder.glob("part-*"))
    kept = sum(window.rows for window in own.windows)
    line = f"candidates: {kept:,} rows for the teacher to score, {600 - kept} left out"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda one: one.drop("price"), "'price'"),
        (lambda one: one.drop("ms"), "'ms'"),
        (lambda one: one.clear(), "no candidates"),
        (lambda one: one.with_columns(page=pl.lit("c")), "unknown domain"),
        (lambda one: one.with_columns(pl.col("item").cast(pl.String)), "'item' holds String"),
        (lambda one: one.with_columns(ms=pl.lit(None, pl.Int64)), "missing or unparsable time"),
    ],
)
def test_a_bad_table_of_candidates_is_refused_in_one_line(
    tmp_path: Path, spoiled: Any, said: str
) -> None:
    with pytest.raises(InputError) as refused:
        taken(tmp_path / "log", rows(0), spoiled(rows(1).drop("clicked")))
    assert said in str(refused.value)
    assert "candidates.parquet" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_label_of_candidates_is_ignored(tmp_path: Path) -> None:
    labelled = taken(tmp_path / "labelled", rows(0), rows(1)) / CANDIDATES_DIR
    bare = taken(tmp_path / "bare", rows(0), rows(1).drop("clicked")) / CANDIDATES_DIR
    assert parts(labelled).equals(parts(bare))


@pytest.mark.parametrize("memory_gb", [1.0, 0.00006])
def test_a_copy_of_the_log_as_candidates_is_encoded_as_the_log(
    tmp_path: Path, memory_gb: float
) -> None:
    """Vocabularies too: each window's candidates know the values that its rows know."""
    windows = taken(tmp_path / "log", rows(0), rows(0).drop("clicked"), memory_gb)
    alike = ["event_time", "domain", "group", *parts(windows).columns[6:]]
    assert {"user", "item", "history", "price", "item_age"} <= set(alike)
    assert parts(windows).select(alike).equals(parts(windows / CANDIDATES_DIR).select(alike))


def test_candidates_need_a_log_with_times_and_labels() -> None:
    table = TABLE | {"files": ["log.parquet"], "candidates": {"files": ["c.parquet"]}}
    without = {name: value for name, value in table.items() if name != "label"}
    for wrong in (
        without | {"explode": {"shown": "shown", "item": "item", "clicked": "clicked"}},
        {**table, "time": None, "row_clock": {"rows_per_window": 10, "start": "2024-01-01"}},
    ):
        with pytest.raises(ValueError, match="candidates need a log with time and label"):
            DatasetSettings.model_validate({"format": "table", "table": wrong})
