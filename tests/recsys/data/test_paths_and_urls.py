"""What a file's path says of its rows, files behind URLs, and files without a line of names."""

from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.encoding import hash_to_rows
from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DatasetSettings, DataSettings, TableSettings
from recsys.data.sources.files import resolve_files
from recsys.data.sources.remote import fetched
from recsys.files import UnreachableError
from tests.support.raw_logs import LOG, SECTION, rows_of, run

BY_DEVICE = {"column": "device", "values": {"phone": "phone", "desk": "desk"}}
START_MS = 1_704_070_800_000


@pytest.fixture
def plain(data_settings: DataSettings, tmp_path: Path) -> pl.DataFrame:
    """The rows of one CSV that holds its devices itself."""
    (tmp_path / "plain").mkdir()
    named = LOG.with_columns(device=pl.Series(["phone"] * 20 + ["desk"] * 20))
    named.write_csv(tmp_path / "plain" / "log.csv")
    run(data_settings, tmp_path / "plain", "table", SECTION | {"domain": BY_DEVICE})
    return rows_of(tmp_path / "plain")


def halves(root: Path, first: str, second: str, file_format: str = "csv") -> None:
    """The log without its devices: 20 rows in each file."""
    for name, half in ((first, LOG[:20]), (second, LOG[20:])):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        getattr(half.drop("device"), f"write_{file_format}")(path)


@pytest.mark.parametrize("file_format", ["csv", "parquet", "ndjson"])
def test_folders_called_key_value_are_columns(
    data_settings: DataSettings, tmp_path: Path, plain: pl.DataFrame, file_format: str
) -> None:
    halves(tmp_path, "log/device=phone/hour=2/a", "log/device=desk/hour=10/a", file_format)
    section = SECTION | {
        "files": ["log/**"],
        "file_format": file_format.replace("nd", "").replace("json", "jsonl"),
        "domain": BY_DEVICE,
        "categorical": [
            *SECTION["categorical"],
            {"column": "hour", "table_rows": 50},
        ],
    }
    run(data_settings, tmp_path, "table", section)
    rows = rows_of(tmp_path)
    assert rows.drop("hour").equals(plain)
    assert rows["hour"].n_unique() == 2
    names = [one.name for one in Encoder.load(tmp_path / "windows").columns]
    assert "hour" in names  # a request gives it, as the folder did


def test_a_value_of_a_folder_s_name_is_unquoted_and_may_be_missing(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    halves(tmp_path, "c=a%20b/x.csv", "c=__HIVE_DEFAULT_PARTITION__/x.csv")
    section = {name: value for name, value in SECTION.items() if name != "domain"}
    section |= {
        "files": ["*/x.csv"],
        "categorical": [{"column": "c", "table_rows": 50}],
    }
    run(data_settings, tmp_path, "table", section)
    expected = hash_to_rows(pl.Series(["a b", None]), 50).to_list()
    assert rows_of(tmp_path)["c"].to_list() == [expected[0]] * 20 + [expected[1]] * 20


def test_the_time_may_be_that_of_the_folders(data_settings: DataSettings, tmp_path: Path) -> None:
    halves(tmp_path, "date=2024-01-01/hour=03/x.csv", "date=2024-01-02/hour=11/x.csv")
    section = {name: value for name, value in SECTION.items() if name != "domain"}
    section |= {
        "files": ["**/*.csv"],
        "columns": {"moment": "CONCAT(date, 'T', hour, ':00')"},
        "time": {"column": "moment", "unit": "datetime"},
    }
    run(data_settings, tmp_path, "table", section)
    assert [window.name for window in Schema.load(tmp_path / "windows").windows] == [
        "2024-01-01T00-00",
        "2024-01-02T00-00",
    ]
    assert rows_of(tmp_path)["event_time"].unique().to_list() == [
        1_704_078_000_000,
        1_704_193_200_000,
    ]


def test_a_file_s_own_column_wins_over_its_folder_s(
    data_settings: DataSettings, tmp_path: Path, plain: pl.DataFrame
) -> None:
    (tmp_path / "device=none").mkdir()
    named = LOG.with_columns(device=pl.Series(["phone"] * 20 + ["desk"] * 20))
    named.write_csv(tmp_path / "device=none" / "log.csv")
    run(
        data_settings,
        tmp_path,
        "table",
        SECTION | {"files": ["device=*/*.csv"], "domain": BY_DEVICE},
    )
    assert rows_of(tmp_path).equals(plain)


def test_the_domain_may_be_part_of_the_file_s_name(
    data_settings: DataSettings, tmp_path: Path, plain: pl.DataFrame
) -> None:
    halves(tmp_path, "phone-1.csv", "desk-2.csv")
    section = SECTION | {
        "files": ["phone-1.csv", "desk-2.csv"],
        "file_columns": {"device": r"([a-z]+)-\d+\.csv$"},
        "domain": BY_DEVICE,
    }
    run(data_settings, tmp_path, "table", section)
    assert rows_of(tmp_path).equals(plain)


def test_the_domain_may_be_told_by_a_rule(
    data_settings: DataSettings, tmp_path: Path, plain: pl.DataFrame
) -> None:
    LOG.drop("device").write_csv(tmp_path / "log.csv")
    rule = "CASE WHEN CAST(price AS DOUBLE) < 20 THEN 'phone' ELSE 'desk' END"
    section = SECTION | {
        "columns": {"vertical": rule},
        "domain": BY_DEVICE | {"column": "vertical"},
    }
    run(data_settings, tmp_path, "table", section)
    assert rows_of(tmp_path).equals(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_columns": {"device": r"(\d{9})"}}, "does not match this path"),
        ({"file_columns": {"price": r"(phone|desk)"}}, "has a column 'price' of its own"),
    ],
)
def test_mistakes_of_file_columns_are_one_line(
    data_settings: DataSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    halves(tmp_path, "phone.csv", "desk.csv")
    section = SECTION | {"files": ["*.csv"], "domain": BY_DEVICE, **change}
    with pytest.raises(InputError, match=message):
        run(data_settings, tmp_path, "table", section)


def test_a_regular_expression_has_one_group() -> None:
    with pytest.raises(ValueError, match="expected one group"):
        TableSettings.model_validate(SECTION | {"file_columns": {"device": "phone"}})


@pytest.fixture
def memory() -> Any:
    """An empty file system in memory, behind memory://."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.mark.parametrize(
    ("root", "pattern"),
    [
        ("memory://bucket/logs", "**/*.csv"),
        ("elsewhere", "memory://bucket/logs/**/*.csv"),
        ("elsewhere", "file://{folder}/device=*/*.csv"),
    ],
)
def test_files_behind_urls_give_what_local_ones_give(
    data_settings: DataSettings,
    tmp_path: Path,
    plain: pl.DataFrame,
    memory: Any,
    root: str,
    pattern: str,
) -> None:
    halves(tmp_path, "device=phone/a.csv", "device=desk/b.csv")
    for path in tmp_path.glob("device=*/*.csv"):
        memory.pipe(f"/bucket/logs/{path.relative_to(tmp_path)}", path.read_bytes())
    files = [pattern.format(folder=tmp_path)]
    section = SECTION | {"files": files, "domain": BY_DEVICE}
    out = tmp_path / "out"
    dataset = DatasetSettings.model_validate({"format": "table", "table": section})
    settings = data_settings.model_copy(update={"root": root})
    ingest(settings, dataset, out / "windows", out / "oracle")
    assert rows_of(out).equals(plain)
    left = {path.name for path in (out / "windows").iterdir()}
    assert not any(name.startswith(".") for name in left)  # no copy of the log


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/none.csv", "no such file"),
        ("memory://bucket/logs", "is a folder"),
        ("nowhere://bucket/x", "nowhere"),
    ],
)
def test_mistakes_of_urls_are_one_line(tmp_path: Path, memory: Any, url: str, message: str) -> None:
    memory.pipe("/bucket/logs/x.csv", b"")
    with pytest.raises(InputError, match=message) as caught:
        resolve_files([url], tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_names_may_be_given_for_files_without_a_line_of_them(
    data_settings: DataSettings, tmp_path: Path, plain: pl.DataFrame
) -> None:
    named = LOG.with_columns(device=pl.Series(["phone"] * 20 + ["desk"] * 20))
    named.write_csv(tmp_path / "log.csv", include_header=False)
    section = SECTION | {"header": LOG.columns, "domain": BY_DEVICE}
    run(data_settings, tmp_path, "table", section)
    assert rows_of(tmp_path).equals(plain)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1,2,3\n", "its first line has 3 fields, but header names 5"), ("", "no good rows")],
)
def test_names_that_do_not_fit_the_lines_are_refused(
    data_settings: DataSettings, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        run(data_settings, tmp_path, "table", SECTION | {"header": LOG.columns})


def test_a_short_line_below_given_names_is_refused(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG.write_csv(tmp_path / "log.csv", include_header=False)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("1704070800,1\n")
    with pytest.raises(InputError, match="line 41 has 2 of 5 fields"):
        run(data_settings, tmp_path, "table", SECTION | {"header": LOG.columns})


def test_a_fetched_file_is_fetched_again_only_where_it_has_changed(
    tmp_path: Path, memory: Any
) -> None:
    memory.pipe("/bucket/x.csv", b"one")
    [copy] = fetched("memory://bucket/x.csv", tmp_path)
    copy.write_bytes(b"kept")
    assert fetched("memory://bucket/x.csv", tmp_path) == [copy] and copy.read_bytes() == b"kept"
    memory.pipe("/bucket/x.csv", b"three")
    assert fetched("memory://bucket/x.csv", tmp_path) == [copy] and copy.read_bytes() == b"three"


def test_a_store_that_does_not_answer_costs_only_what_it_has_not_given(
    data_settings: DataSettings,
    tmp_path: Path,
    plain: pl.DataFrame,
    memory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves(tmp_path, "device=phone/a.csv", "device=desk/b.csv")
    for path in tmp_path.glob("device=*/*.csv"):
        memory.pipe(f"/logs/{path.relative_to(tmp_path)}", path.read_bytes())
    section = SECTION | {"files": ["memory://logs/**/*.csv"], "domain": BY_DEVICE}
    dataset = DatasetSettings.model_validate({"format": "table", "table": section})
    out, work = tmp_path / "windows", tmp_path / "work"
    asked, get_file = list[str](), type(memory).get_file

    def failing_once(self: Any, name: str, target: str) -> None:
        asked.append(name)
        if len(asked) == 2:
            raise ConnectionResetError("the other side is away")
        get_file(self, name, target)

    monkeypatch.setattr(type(memory), "get_file", failing_once)
    with pytest.raises(UnreachableError, match="the other side is away"):
        ingest(data_settings, dataset, out, tmp_path / "oracle", work)
    assert not out.exists()
    ingest(data_settings, dataset, out, tmp_path / "oracle", work)
    assert rows_of(tmp_path).equals(plain)
    assert len(asked) == 3 and asked[1] == asked[2]  # the first file came once
