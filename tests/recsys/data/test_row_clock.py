"""Logs without times: the order of the rows is the clock."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, TableSettings
from tests.support.raw_logs import LOG, SECTION, rows_of, run

UNTIMED = {name: value for name, value in SECTION.items() if name != "time"}
DAY_MS = 86_400_000
START_MS = 1_706_745_600_000  # 2024-02-01


def section(**changes: Any) -> dict[str, Any]:
    clock = {"rows_per_window": 12, "start": "2024-02-01"}
    return UNTIMED | {"row_clock": clock} | changes


def test_so_many_rows_are_a_window_in_the_order_of_the_files(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG[20:].drop("time").write_csv(tmp_path / "part-10.csv")
    LOG[:20].drop("time").write_csv(tmp_path / "part-2.csv")
    run(data_settings, tmp_path, "table", section(files=["part-*.csv"]))
    windows = Schema.load(tmp_path / "windows").windows
    assert [(one.name, one.rows) for one in windows] == [
        ("2024-02-01T00-00", 12),
        ("2024-02-02T00-00", 12),
        ("2024-02-03T00-00", 12),
        ("2024-02-04T00-00", 4),
    ]
    rows = rows_of(tmp_path)
    assert rows["price"].to_list() == pytest.approx(LOG["price"].log1p().to_list(), abs=1e-5)
    assert rows["event_time"][0] == START_MS
    assert rows["event_time"].diff().drop_nulls().unique().to_list() == [DAY_MS // 12]
    assert rows["label_time"].equals(rows["event_time"])


def test_rows_that_are_left_out_take_their_place(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    text = LOG.cast({"clicked": pl.String}).with_row_index("n")
    marked = text.with_columns(clicked=pl.when(pl.col("n") == 1).then(None).otherwise("clicked"))
    marked.write_csv(tmp_path / "log.csv")
    few = section(filter="CAST(n AS BIGINT) >= 6 OR n = '1'")
    run(data_settings, tmp_path, "table", few, quarantine_limit=0.5)
    assert [one.rows for one in Schema.load(tmp_path / "windows").windows] == [6, 12, 12, 4]


@pytest.mark.parametrize("hours", [7.0, 0.5])
def test_windows_of_any_length_hold_the_same_rows(
    data_settings: DataSettings, tmp_path: Path, hours: float
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    run(data_settings, tmp_path, "table", section(), window_hours=hours)
    assert [one.rows for one in Schema.load(tmp_path / "windows").windows] == [12, 12, 12, 4]


def test_vocabularies_and_counters_know_the_windows_before(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    grown = section(
        categorical=[
            {
                "column": "user",
                "table_rows": 50,
                "encoding": {"kind": "vocabulary", "min_count": 2},
            }
        ],
        counters=[{"by": ["user"], "bin_minutes": 1440, "hours": [24]}],
    )
    run(data_settings, tmp_path, "table", grown)
    rows = rows_of(tmp_path)
    assert rows["user"].max() == 6  # 5 users after rows 0 and 1
    first = rows[:12]["user_examples_24h"]
    assert first.n_unique() == 1 and rows[12]["user_examples_24h"][0] > first[0]


def test_features_of_the_clock_are_refused(data_settings: DataSettings, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    asked = section(categorical=[{"column": "event_hour", "table_rows": 50}])
    with pytest.raises(InputError, match="no column 'event_hour'"):
        run(data_settings, tmp_path, "table", asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": {"column": "time", "unit": "s"}}, "exactly one of time"),
        ({"row_clock": None}, "exactly one of time"),
        ({"label_time": {"column": "time", "unit": "s"}}, "label_time and joins with time need"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TableSettings.model_validate(section(**changes))
