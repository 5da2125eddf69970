"""A log read in shares, several at once, gives the bytes that it gives when read by one process."""

import gzip
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.shares import Share, one_after_another
from tests.support.files import contents
from tests.support.raw_logs import SHUFFLED_SECTION as SECTION

START_S, FILES, ROWS = 1_704_067_200, 5, 400
UNTIMED = {name: value for name, value in SECTION.items() if name != "time"}


def frames(labels: tuple[int, int] = (0, 1)) -> list[pl.DataFrame]:
    """Files of rows in no order, three of each with a bad label, time or number."""
    found: list[pl.DataFrame] = []
    for index in range(FILES):
        random = np.random.default_rng(index)
        text = pl.DataFrame(
            {
                "ts": START_S + random.integers(0, 3 * 86_400, ROWS),
                "y": np.array(labels)[(random.random(ROWS) < 0.3).astype(int)],
                "user": random.integers(0, 97 + 40 * index, ROWS),
                "ad": random.integers(0, 23, ROWS),
                "price": random.random(ROWS).round(3),
            }
        ).cast(pl.String)
        row = pl.int_range(pl.len())
        found.append(
            text.with_columns(
                pl.when(row == 3).then(pl.lit("7")).otherwise("y").alias("y"),
                pl.when(row == 5 + index).then(pl.lit("never")).otherwise("ts").alias("ts"),
                pl.when(row == 9).then(pl.lit("much")).otherwise("price").alias("price"),
            )
        )
    return found


def as_csv(root: Path) -> dict[str, Any]:
    for index, frame in enumerate(frames()):
        frame.write_csv(root / f"log-{index}.csv")
    return SECTION


def as_gz(root: Path) -> dict[str, Any]:
    for index, frame in enumerate(frames()):
        (root / f"log-{index}.csv.gz").write_bytes(gzip.compress(frame.write_csv().encode()))
    return SECTION | {"filter": "ad <> '7'"}


def as_jsonl(root: Path) -> dict[str, Any]:
    for index, frame in enumerate(frames()):
        frame.write_ndjson(root / f"log-{index}.jsonl")
    return SECTION | {"file_format": "jsonl"}


def as_one_parquet(root: Path) -> dict[str, Any]:
    pl.concat(frames()).write_parquet(root / "log-0.parquet", row_group_size=150)
    return SECTION | {"file_format": "parquet", "columns": {"both": "CONCAT(ad, '_', price)"}}


def as_several_parquet(root: Path) -> dict[str, Any]:
    for index, frame in enumerate(frames()):
        name = f"log-{index}.parquet"
        frame.head(0 if index in (0, 2) else ROWS).write_parquet(root / name, row_group_size=170)
    return SECTION | {"file_format": "parquet", "crosses": [["user", "ad"]]}


def as_arrow(root: Path) -> dict[str, Any]:
    for index, frame in enumerate(frames()):
        frame.write_ipc(root / f"log-{index}.arrow")
    return SECTION | {"file_format": "arrow"}


def minus_one_beside_zero_elsewhere(root: Path) -> dict[str, Any]:
    for index in range(FILES):
        labels = (0, 1) if index == 3 else (-1, 1)
        frames(labels)[index].write_csv(root / f"log-{index}.csv")
    return SECTION


def minus_one_for_zero(root: Path) -> dict[str, Any]:
    for index, frame in enumerate(frames((-1, 1))):
        frame.write_csv(root / f"log-{index}.csv")
    return SECTION


def rows_as_clock(root: Path) -> dict[str, Any]:
    as_csv(root)
    return UNTIMED | {"row_clock": {"rows_per_window": 700, "start": "2024-02-01"}}


def rows_as_clock_of_parquet(root: Path) -> dict[str, Any]:
    as_one_parquet(root)
    clock = {"rows_per_window": 700, "start": "2024-02-01"}
    return UNTIMED | {"row_clock": clock, "file_format": "parquet"}


def impressions(root: Path) -> dict[str, Any]:
    for index, frame in enumerate(frames()):
        shown = pl.concat_str("ad", "user", separator="-1 ") + "-0"
        frame.with_columns(shown=shown).write_csv(root / f"log-{index}.csv")
    explode = {"shown": "shown", "separator": " ", "label_separator": "-", "item": "item"}
    sections = {name: value for name, value in SECTION.items() if name != "label"}
    item = {"column": "item", "table_rows": "auto"}
    return sections | {"explode": explode, "categorical": [*SECTION["categorical"], item]}


def clicks_alone(root: Path) -> dict[str, Any]:
    as_csv(root)
    sections = {name: value for name, value in SECTION.items() if name != "label"}
    negatives = {"item": "ad", "session": "user", "per_click": 2, "popularity_hours": 5, "seed": 1}
    return sections | {"sample_negatives": negatives}


def with_side_tables(root: Path) -> dict[str, Any]:
    as_csv(root)
    ads = pl.DataFrame({"ad_id": range(20), "brand": [f"b{one % 4}" for one in range(20)]})
    ads.write_csv(root / "ads.csv")
    users = pl.DataFrame(
        {"id": [1, 1, 2], "since": [START_S, START_S + 90_000, START_S], "group": ["a", "b", "c"]}
    )
    users.write_csv(root / "users.csv")
    return SECTION | {
        "joins": [
            {
                "files": ["ads.csv"],
                "file_format": "csv",
                "keys": {"ad": "ad_id"},
                "columns": ["brand"],
            },
            {
                "files": ["users.csv"],
                "file_format": "csv",
                "keys": {"user": "id"},
                "columns": ["group"],
                "time": {"column": "since", "unit": "s"},
            },
        ],
        "categorical": [
            *SECTION["categorical"],
            {"column": "brand", "table_rows": "auto"},
            {
                "column": "group",
                "table_rows": 10,
                "encoding": {"kind": "vocabulary", "min_count": 2},
            },
        ],
    }


LOGS: list[Callable[[Path], dict[str, Any]]] = [
    as_csv,
    as_gz,
    as_jsonl,
    as_one_parquet,
    as_several_parquet,
    as_arrow,
    minus_one_beside_zero_elsewhere,
    minus_one_for_zero,
    rows_as_clock,
    rows_as_clock_of_parquet,
    impressions,
    clicks_alone,
    with_side_tables,
]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def settings_of(data: DataSettings, root: Path, tasks: int) -> DataSettings:
    small = {"root": str(root), "dataset": "log", "memory_gb": 6e-4, "rows_per_part": 300}
    return data.model_copy(update=small | {"quarantine_limit": 1.0, "parallel_tasks": tasks})


@pytest.mark.parametrize("log", LOGS)
def test_processes_that_share_a_log_give_the_bytes_of_one(
    log: Callable[[Path], dict[str, Any]],
    data_settings: DataSettings,
    tmp_path: Path,
    processes: ProcessPoolExecutor,
) -> None:
    described = {"format": "table", "table": log(tmp_path)}
    dataset = DatasetSettings.model_validate(described)
    one, several = tmp_path / "one", tmp_path / "several"
    ingest(settings_of(data_settings, tmp_path, 1), dataset, one, tmp_path / "oracle")
    names: set[str] = set()

    def backwards(
        read: Callable[[Share], int], shares: Sequence[Share], done: Callable[[int], None]
    ) -> None:
        names.update(share.name for share in shares)
        for rows in processes.map(read, shares[::-1]):
            done(rows)

    settings = settings_of(data_settings, tmp_path, 2)
    ingest(settings, dataset, several, tmp_path / "oracle", read_shares=backwards)
    assert len(names) >= 3
    assert contents(several) == contents(one)
    assert (one / "quarantine.csv").exists()


def test_small_files_are_read_together_and_row_groups_apart(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    for index in range(40):
        frames()[0].head(20).write_parquet(tmp_path / f"log-{index}.parquet")
    frames()[0].write_parquet(tmp_path / "log-40.parquet", row_group_size=100)
    described = {"format": "table", "table": SECTION | {"file_format": "parquet"}}
    names: list[str] = []

    def noted(
        read: Callable[[Share], int], shares: Sequence[Share], done: Callable[[int], None]
    ) -> None:
        names.extend(share.name for share in shares)
        one_after_another(read, shares, done)

    ingest(
        settings_of(data_settings, tmp_path, 2),
        DatasetSettings.model_validate(described),
        tmp_path / "windows",
        tmp_path / "oracle",
        read_shares=noted,
    )
    assert 4 <= len(names) <= 12
    assert names[0].endswith(" files from log-0.parquet")
    assert names[-1] == "log-40.parquet from row 300"


def test_a_column_is_judged_by_all_shares(data_settings: DataSettings, tmp_path: Path) -> None:
    """Most times of one file are wrong, but not most of the log's."""
    for index, frame in enumerate(frames()):
        late = frame.with_columns(ts=pl.lit("9" * 12)) if index == 0 else frame
        late.write_csv(tmp_path / f"log-{index}.csv")
    dataset = DatasetSettings.model_validate({"format": "table", "table": SECTION})
    settings = settings_of(data_settings, tmp_path, 3)
    ingest(settings, dataset, tmp_path / "windows", tmp_path / "oracle")
    wrong = dataset.model_dump(exclude_defaults=True)
    wrong["table"]["time"]["unit"] = "ms"
    with pytest.raises(InputError, match="unit: s would give 2024"):
        ingest(
            settings, DatasetSettings.model_validate(wrong), tmp_path / "other", tmp_path / "oracle"
        )
