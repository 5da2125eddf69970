"""A log's windows have the same bytes however little of it is in memory at a time."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.settings import DataSettings
from tests.support.raw_logs import rows_of, run

ROWS, DAYS = 600, 3
INGEST = """
import json, pathlib, sys
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings
data, log = (json.loads(text) for text in sys.argv[1:3])
folder = pathlib.Path(sys.argv[3])
log = DatasetSettings.model_validate(log)
ingest(DataSettings(**data), log, folder / "windows", folder / "oracle")
"""
START = 1_704_067_200  # 2024-01-01 00:00 UTC
ALL_AT_ONCE = 2.0
SOME_ROWS, FEW_ROWS = 1e-3, 2e-5  # GiB: about a hundred rows of these logs in a block, and two


def clicks(seed: int = 0) -> pl.DataFrame:
    """Rows in no order, many of them at the same second."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "ts": START + random.integers(0, DAYS * 24, ROWS) * 3600,
            "y": random.integers(0, 2, ROWS),
            "user": [f"u{number}" for number in random.integers(0, 30, ROWS)],
            "item": random.integers(0, 90, ROWS),
            "price": random.random(ROWS).round(2),
            "place": np.array(["home", "search"])[random.integers(0, 2, ROWS)],
        }
    )


def impressions() -> pl.DataFrame:
    random = np.random.default_rng(1)
    shown = [random.integers(0, 40, size).tolist() for size in random.integers(0, 6, ROWS // 3)]
    return pl.DataFrame(
        {
            "ts": START + random.integers(0, DAYS * 86_400, ROWS // 3),
            "user": random.integers(0, 20, ROWS // 3),
            "seen": shown,
            # 99 is never shown
            "hit": [[*one[:1], 99] if index % 2 else [] for index, one in enumerate(shown)],
        },
        schema_overrides={"hit": pl.List(pl.Int64)},
    )


def section(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "files": ["*.csv"],
        "file_format": "csv",
        "time": {"column": "ts", "unit": "s", "label_delay_s": 4_000},
        "label": "y",
        "dense": ["price"],
        "categorical": [
            {"column": "user", "table_rows": "auto"},
            {"column": "item", "table_rows": 50},
        ],
        "counters": [
            {"by": ["item"], "bin_minutes": 10, "hours": [1, 24]},
            {"by": ["user", "item"], "bin_minutes": 30, "hours": [2], "examples": False},
        ],
        "history": {"user": "user", "item": "item", "length": 3, "table_rows": "auto"},
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def csv_with_bad_rows(folder: Path) -> dict[str, Any]:
    text = clicks().cast(pl.String)
    wrong = pl.when(pl.int_range(pl.len()) % 50 == 7).then(pl.lit("dear")).otherwise("price")
    text = text.with_columns(price=wrong)
    text.head(200).write_csv(folder / "1.csv")
    text.tail(400).select(reversed(text.columns)).write_csv(folder / "2.csv")
    place = {"column": "place", "values": {"home": "home"}, "other": "other"}
    both = "CONCAT(place, '_', item)"
    often = {"encoding": {"kind": "vocabulary", "min_count": 6}, "table_rows": "auto"}
    categorical = [
        {"column": "item", **often},
        {"column": "user", "table_rows": 50},
        {"column": "both", "table_rows": "auto"},
        {"column": "event_weekday", "table_rows": 50},
    ]
    return section(
        domain=place,
        columns={"both": both},
        filter="item <> '7'",
        group="both",
        categorical=categorical,
        crosses=[["user", "place"], {"columns": ["place", "event_hour"], **often}],
    )


def json_lines(folder: Path) -> dict[str, Any]:
    clicks().write_ndjson(folder / "log.jsonl")
    return section(files=["log.jsonl"], file_format="jsonl")


def lists_of_impressions(folder: Path) -> dict[str, Any]:
    impressions().write_parquet(folder / "log.parquet")
    explode = {"shown": "seen", "clicked": "hit", "item": "item"}
    dense = ["shown_count"]
    return parquet(label=None, explode=explode, dense=dense)


def clicks_alone(folder: Path) -> dict[str, Any]:
    clicks().filter(pl.col("y") == 1).write_parquet(folder / "log.parquet", row_group_size=50)
    draw = {"item": "item", "session": "user", "per_click": 3, "popularity_hours": 5, "seed": 4}
    return parquet(label=None, sample_negatives=draw)


def parquet(**changes: Any) -> dict[str, Any]:
    return section(files=["log.parquet"], file_format="parquet", **changes)


def digest(data: DataSettings, folder: Path, described: dict[str, Any], **changes: Any) -> str:
    run(data, folder, "table", described, **changes)
    found = digest_of(folder / "windows")
    shutil.rmtree(folder / "windows")
    return found


def digest_of(windows: Path) -> str:
    """Of the names and the contents of all files."""
    found = hashlib.sha256()
    for path in sorted(windows.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(windows).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize("log", [csv_with_bad_rows, json_lines, lists_of_impressions, clicks_alone])
def test_the_bytes_do_not_depend_on_what_fits_in_memory(
    data_settings: DataSettings, tmp_path: Path, log: Any
) -> None:
    described = log(tmp_path)
    data = data_settings.model_copy(update={"quarantine_limit": 0.1, "rows_per_part": 150})
    for windows in ({}, {"max_windows": 2}):
        digests = {
            digest(data, tmp_path, described, memory_gb=memory, **windows)
            for memory in (ALL_AT_ONCE, SOME_ROWS, FEW_ROWS)
        }
        assert len(digests) == 1


def test_the_bytes_do_not_depend_on_the_number_of_threads(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    described = csv_with_bad_rows(tmp_path)
    data = data_settings.model_copy(update={"quarantine_limit": 0.1, "memory_gb": SOME_ROWS})
    # Threads can be set only as a process starts
    for name in ("1", "5"):
        settings = data.model_copy(update={"root": str(tmp_path)}).model_dump()
        log = {"format": "table", "table": described}
        subprocess.run(
            [sys.executable, "-c", INGEST, json.dumps(settings), json.dumps(log), tmp_path / name],
            env={**os.environ, "POLARS_MAX_THREADS": name},
            check=True,
        )
    assert digest_of(tmp_path / "1" / "windows") == digest_of(tmp_path / "5" / "windows")


def test_a_shuffled_log_has_the_rows_of_the_sorted_one(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    # Times differ, so that their order alone is that of the rows
    log = clicks().with_columns(ts=START + pl.int_range(pl.len()) * 60)
    found = []
    for name, frame in (
        ("sorted", log),
        ("shuffled", log.sample(fraction=1, shuffle=True, seed=2)),
    ):
        (tmp_path / name).mkdir()
        frame.write_csv(tmp_path / name / "log.csv")
        run(data_settings, tmp_path / name, "table", section(group="user"), memory_gb=FEW_ROWS)
        found.append(rows_of(tmp_path / name))
    assert found[0].equals(found[1])


@pytest.mark.parametrize("memory_gb", [ALL_AT_ONCE, FEW_ROWS])
def test_a_zero_that_comes_late_still_tells_what_minus_one_is(
    data_settings: DataSettings, tmp_path: Path, memory_gb: float
) -> None:
    labels = ["1", "-1"] * 20
    log = {"ts": [START + row for row in range(41)], "user": ["u"] * 41, "item": ["i"] * 41}
    plain = section(dense=None, counters=None, history=None)
    data = data_settings.model_copy(update={"memory_gb": memory_gb, "quarantine_limit": 0.6})
    for name, last, bad in (("without", "1", 0), ("with", "0", 20)):
        (tmp_path / name).mkdir()
        pl.DataFrame({**log, "y": [*labels, last]}).write_csv(tmp_path / name / "log.csv")
        report = run(data, tmp_path / name, "table", plain)
        assert (report.rows, report.quarantined) == (41 - bad, bad)


@pytest.mark.parametrize("memory_gb", [ALL_AT_ONCE, FEW_ROWS])
def test_a_column_of_times_is_judged_as_a_whole(
    data_settings: DataSettings, tmp_path: Path, memory_gb: float
) -> None:
    times = ["2024-01-01"] * 10 + ["04/01/2024"] * 9
    plain = section(
        time={"column": "ts", "unit": "datetime"}, dense=None, counters=None, history=None
    )
    data = data_settings.model_copy(update={"memory_gb": memory_gb, "quarantine_limit": 0.6})
    log = pl.DataFrame({"ts": times, "y": ["1"] * 19, "user": ["u"] * 19, "item": ["i"] * 19})
    (tmp_path / "most").mkdir()
    log.write_csv(tmp_path / "most" / "log.csv")
    assert run(data, tmp_path / "most", "table", plain).quarantined == 9
    (tmp_path / "few").mkdir()
    pl.concat([log[9:], log[:9], log[-3:]]).write_csv(tmp_path / "few" / "log.csv")
    with pytest.raises(InputError, match="'04/01/2024', which is not an ISO 8601 time; set format"):
        run(data, tmp_path / "few", "table", plain)
    assert not (tmp_path / "few" / "windows").exists()
