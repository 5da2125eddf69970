"""What manifests say of windows beside those before, and where ingest stops."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.drift import WindowCounts
from recsys.data.schema import CategoricalFeature
from recsys.data.settings import DataSettings
from tests.support.raw_logs import run

DAYS, DAILY = 4, 600
START_S = 1_704_067_200
SECTION: dict[str, Any] = {
    "files": ["log.parquet"],
    "file_format": "parquet",
    "time": {"column": "ts", "unit": "s"},
    "label": "y",
    "dense": ["price"],
    "categorical": [
        {"column": "ad", "table_rows": 5_000},
        {
            "column": "user",
            "table_rows": 100,
            "encoding": {"kind": "vocabulary", "min_count": 5},
        },
    ],
}


def log(**last_day: Any) -> pl.DataFrame:
    """Four days of the same kind, but for what is given of the last one."""
    random = np.random.default_rng(3)
    days = []
    for day in range(DAYS):
        columns: dict[str, Any] = {
            "ts": START_S + 86_400 * day + np.arange(DAILY) * 100,
            "y": random.random(DAILY) < 0.2,
            "price": random.random(DAILY),
            "ad": random.integers(0, 20, DAILY),
            "user": random.integers(0, 30, DAILY),
        }
        days.append(pl.DataFrame(columns | (last_day if day == DAYS - 1 else {})))
    return pl.concat(days, how="vertical_relaxed")


def statistics(root: Path) -> list[dict[str, Any]]:
    paths = sorted((root / "windows").glob("*/manifest.json"))
    return [json.loads(path.read_text())["statistics"] for path in paths]


def ingested(data: DataSettings, root: Path, frame: pl.DataFrame, **bounds: float) -> Any:
    frame.write_parquet(root / "log.parquet")
    drift = data.drift.model_copy(update=bounds)
    return run(data, root, "table", SECTION, drift=drift)


CHANGES: dict[str, tuple[dict[str, Any], float, str]] = {
    "base_rate": ({"y": np.arange(DAILY) % 2 == 0}, 2.0, r"base rate 0.5, in earlier windows 0.2"),
    "missing": (
        {"price": pl.Series([None] * DAILY, dtype=pl.Float64)},
        0.9,
        r"100.0% of 'price' are missing, in earlier windows 0.0%",
    ),
    "distinct": (
        {"ad": np.arange(DAILY)},
        12.0,
        "'ad' has .* distinct ids, in each earlier window",
    ),
    "unknown": ({"user": 1_000 + np.arange(DAILY) % 7}, 0.5, "100.0% of 'user' are not in its"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_window_past_a_bound_stops_ingest(
    data_settings: DataSettings, tmp_path: Path, key: str
) -> None:
    change, bound, message = CHANGES[key]
    with pytest.raises(InputError, match=f"window 2024-01-04T00-00: {message}") as caught:
        ingested(data_settings, tmp_path, log(**change), **{key: bound})
    assert "\n" not in str(caught.value) and key in str(caught.value)
    assert not (tmp_path / "windows").exists()


def test_a_steady_log_passes_narrow_bounds_and_nothing_is_said(
    data_settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = {"base_rate": 1.01, "missing": 0.001, "distinct": 1.1, "unknown": 0.5}
    ingested(data_settings, tmp_path, log(), **bounds)
    assert "in earlier windows" not in capsys.readouterr().err


def test_without_bounds_a_change_is_said_and_written(
    data_settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {name: value for one, _, _ in CHANGES.values() for name, value in one.items()}
    ingested(data_settings, tmp_path, log(**change))
    said = capsys.readouterr().err
    for words in ("base rate 0.5", "of 'price' are missing", "'ad' has", "not in its vocabulary"):
        assert words in said
    found = statistics(tmp_path)
    assert [round(one["base_rate"], 1) for one in found] == [0.2, 0.2, 0.2, 0.5]
    assert [one["missing"]["price"] for one in found] == [0, 0, 0, 1]
    assert found[0]["distinct"]["ad"] == 20 and 540 < found[3]["distinct"]["ad"] < 600


def test_the_share_of_unknown_values_is_of_each_window_s_own_vocabulary(
    data_settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = np.where(np.arange(DAILY) % 4 == 0, 1_000, np.arange(DAILY) % 30)
    ingested(data_settings, tmp_path, log(user=users))
    shares = [one["unknown"]["user"] for one in statistics(tmp_path)]
    assert shares == [0, 0, 0, 0.25]
    assert "vocabulary of 'user': 8.3% of the values" in capsys.readouterr().err


def test_missing_values_are_not_unknown(data_settings: DataSettings, tmp_path: Path) -> None:
    users = [None if row % 2 else 1_000 + row % 4 for row in range(DAILY)]
    ingested(data_settings, tmp_path, log(user=users))
    last = statistics(tmp_path)[-1]
    assert (last["unknown"]["user"], last["missing"]["user"]) == (1.0, 0.5)


def test_lists_count_by_their_elements_and_are_missing_where_empty() -> None:
    counts = WindowCounts([], [CategoricalFeature("tags", 9, "list")], ["tags"])
    for tags in ([[1, 2], []], [[2, 1, 1, 0], None]):
        column = pl.Series(tags, dtype=pl.List(pl.Int64))
        counts.add(pl.DataFrame({"label": [1.0, 0.0], "tags": column}))
    assert counts.summary() == {
        "base_rate": 0.5,
        "missing": {"tags": 0.5},
        "unknown": {"tags": 0.6},  # three of five elements that are not missing
        "distinct": {"tags": 2},
    }


def test_a_column_that_not_all_files_have_is_named(
    data_settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log().write_parquet(tmp_path / "log-1.parquet")
    log().with_columns(new=pl.lit(1)).write_parquet(tmp_path / "log-2.parquet")
    run(data_settings, tmp_path, "table", SECTION | {"files": ["log-*.parquet"]})
    assert "column 'new' is in 1 of 2 files" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_windows(data_settings: DataSettings, tmp_path: Path) -> None:
    log().write_parquet(tmp_path / "log.parquet")
    peaks = []
    for windows in (8, 48):
        (tmp_path / str(windows)).mkdir()
        (tmp_path / str(windows) / "log.parquet").symlink_to(tmp_path / "log.parquet")
        tracemalloc.start()
        run(data_settings, tmp_path / str(windows), "table", SECTION, window_hours=96 / windows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**20  # NumPy's memory: a window's counters take half a MiB
