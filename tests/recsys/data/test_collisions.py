"""How many values share a row of their table is counted, and said where it is many."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.data.collisions import (
    BITS,
    EXACT_VALUES,
    DistinctValues,
    TableUse,
    auto_rows,
    crowded,
)
from recsys.data.encoding import hash_to_rows
from recsys.data.settings import DataSettings
from tests.support.raw_logs import LOG, SECTION, run


def used(values: list[str], table_rows: int) -> TableUse:
    use = TableUse("hour", table_rows)
    for start in range(0, len(values), 100):  # chunks, with values met before
        hash_to_rows(pl.Series(values[max(start - 50, 0) : start + 100]), table_rows, use=use)
    return use


def test_values_rows_and_collisions_are_counted() -> None:
    values = [f"u{number}" for number in range(1_431)]
    found = used(values, 3_000).summary()
    rows = hash_to_rows(pl.Series(values), 3_000).n_unique()
    assert (found["distinct_values"], found["rows_used"]) == (1_431, rows)
    assert found["found_collisions"] == 1_431 - rows
    # 2999 (1 - (1 - 1/2999)^1431) = 1138 rows are expected to be used
    assert found["expected_collisions"] == pytest.approx(1_431 - 1_138, abs=1)
    assert found["found_collisions"] == pytest.approx(found["expected_collisions"], abs=60)


def test_a_missing_value_is_no_value() -> None:
    found = used(["a", "", "NA", "1", "1.0"], 100).summary()
    assert (found["distinct_values"], found["found_collisions"]) == (2, 0)


def test_many_values_are_estimated_within_a_hundredth() -> None:
    hashed = np.random.default_rng(1).integers(0, 2**64, 400_000, dtype=np.uint64)
    use = TableUse("id", 1_000)
    for part in np.split(hashed, 8):
        use.add(part, (part % np.uint64(999)).astype(np.int64) + 1)
    found = use.summary()
    assert not found["distinct_is_exact"]
    assert found["distinct_values"] == pytest.approx(400_000, rel=0.01)
    assert EXACT_VALUES < BITS


def counted(hashed: np.ndarray, parts: int, kept: int) -> int:
    values = DistinctValues(kept)
    for part in np.array_split(hashed, parts):
        values.add(part)
    return values.count


def test_distinct_values_are_exact_then_estimated_in_any_order() -> None:
    random = np.random.default_rng(2)
    values = random.integers(0, 2**64, 60_000, dtype=np.uint64)
    hashed = random.permutation(np.concatenate([values, values[:30_000]]))
    assert counted(hashed, 7, kept=60_001) == 60_000
    estimate = counted(hashed, 7, kept=4_096)
    assert estimate == pytest.approx(60_000, rel=4 / np.sqrt(4_096)) and estimate != 60_000
    assert counted(hashed[::-1], 50, kept=4_096) == counted(np.sort(hashed), 1, kept=4_096)
    assert counted(hashed[::-1], 50, kept=4_096) == estimate


def test_a_crowded_table_is_one_line_with_what_would_do() -> None:
    hours = [f"{hour}h" for hour in range(24)]
    (line,) = crowded([used(hours, 24), used(hours, auto_rows(24))])
    assert line.startswith("column 'hour': 24 values in 24 table_rows have ")
    assert line.endswith("take table_rows: auto (5,762)")
    assert crowded([used([f"u{n}" for n in range(2_000)], auto_rows(2_000))]) == []


def test_ingest_writes_the_use_of_every_table(data_settings: DataSettings, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    history = {"user": "user", "item": "device", "length": 3, "table_rows": "auto"}
    categorical = [{"column": "user", "table_rows": 2_000}]
    section = SECTION | {"history": history, "categorical": categorical}
    run(data_settings, tmp_path, "table", section)
    found = json.loads((tmp_path / "windows" / "encoding.json").read_text())
    assert found["user"] == {
        "distinct_values": 5,
        "distinct_is_exact": True,
        "table_rows": 2_000,
        "rows_used": 5,
        "expected_collisions": 0,
        "found_collisions": 0,
    }
    assert (found["history"]["distinct_values"], found["history"]["table_rows"]) == (3, 92)
