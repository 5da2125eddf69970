"""Criteo and table sources: what they read, what they quarantine, what they refuse."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.encoding import hash_text, hash_to_rows
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, load_dataset
from tests.support.raw_logs import LOG, SECTION, rows_of, run

HOUR_MS = 3_600_000
PARAMS = Path(__file__).resolve().parents[3] / "params"


def criteo_line(label: str = "0", integer: str = "5", category: str = "68fd1e64") -> str:
    return "\t".join([label, integer, *[""] * 12, category, *["a"] * 25])


def criteo_section(files: list[str]) -> dict[str, Any]:
    return {
        "files": files,
        "start": "2024-01-01",
        "rows_per_second": 0.001,
        "table_rows": 100,
        "chunk_rows": 7,
    }


def test_criteo_plain_and_gzip_are_one_stream(data_settings: DataSettings, tmp_path: Path) -> None:
    (tmp_path / "day_0.txt").write_text("".join(criteo_line("1") + "\n" for _ in range(100)))
    with gzip.open(tmp_path / "day_1.gz", "wt") as file:
        file.write("".join(criteo_line("0", "-2", "") + "\n" for _ in range(100)))
    report = run(data_settings, tmp_path, "criteo", criteo_section(["day_0.txt", "day_1.gz"]))
    rows = rows_of(tmp_path)
    assert (report.rows, report.base_rate, report.windows) == (200, 0.5, 3)
    assert rows["event_time"].diff().drop_nulls().unique().to_list() == [1_000_000]
    assert rows["integer_1"].round(4).unique().sort().to_list() == pytest.approx([-1.0986, 1.7918])
    assert rows["integer_2"].null_count() == 200
    assert rows["category_1"].n_unique() == 2 and rows["category_1"][150] == 0
    assert list((tmp_path / "oracle").iterdir()) == []


def test_bad_criteo_rows_are_kept_aside_with_reasons(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    bad = [criteo_line("2"), criteo_line("0", "many"), "1\t2"]
    (tmp_path / "log.txt").write_text(
        "\n".join([criteo_line()] * 5 + bad + [criteo_line()] * 5) + "\n"
    )
    report = run(
        data_settings, tmp_path, "criteo", criteo_section(["log.txt"]), quarantine_limit=0.5
    )
    kept = pl.read_parquet(tmp_path / "windows" / "quarantine.parquet")
    assert (report.rows, report.quarantined) == (10, 3)
    assert kept["row"].to_list() == [5, 6, 7]
    assert kept["reason"].to_list() == [
        "label outside {0, 1}",
        "unparsable number",
        "expected 40 fields",
    ]
    manifests = [
        json.loads(path.read_text()) for path in (tmp_path / "windows").glob("*/manifest.json")
    ]
    assert sum(one["quarantined_rows"] for one in manifests) == 3


CRITEO_VALUES = ["68fd1e64", "", "NA", "12.0", "12", "-0", "True", "true", " ", "ümlaut"]


@pytest.mark.parametrize("chunk_rows", [3, 1_000])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_criteo_rows_are_the_same_beside_bad_ones_and_in_any_chunk(
    data_settings: DataSettings, tmp_path: Path, chunk_rows: int, ending: str
) -> None:
    good = [criteo_line("1", str(number), value) for number, value in enumerate(CRITEO_VALUES)]
    logs = {"clean": good, "dirty": [*good, "no", *good[:5], criteo_line("7"), *good[5:]]}
    found = {}
    for name, lines in logs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.txt").write_bytes("".join(x + ending for x in lines).encode())
        section = criteo_section(["log.txt"]) | {"chunk_rows": chunk_rows}
        run(data_settings, tmp_path / name, "criteo", section, quarantine_limit=0.5)
        found[name] = rows_of(tmp_path / name)
    clean, own = found["clean"], ["example_id", "event_time", "label_time", "group"]
    assert found["dirty"].height == 20
    assert found["dirty"][:10].drop(own).equals(clean.drop(own))
    assert found["dirty"][10:].drop(own).equals(clean.drop(own))
    assert clean["category_1"].to_list() == hash_to_rows(pl.Series(CRITEO_VALUES), 100).to_list()
    assert clean["integer_1"].to_list() == pytest.approx([math.log1p(x) for x in range(10)])


@pytest.mark.parametrize("values", [["12.0", "12", "b"], [" ", "b", "c"], ["False", "false", "b"]])
def test_criteo_categories_have_one_spelling(
    data_settings: DataSettings, tmp_path: Path, values: list[str]
) -> None:
    lines = [criteo_line(category=value) + "\n" for value in values]
    (tmp_path / "log.txt").write_text("".join(lines))
    run(data_settings, tmp_path, "criteo", criteo_section(["log.txt"]))
    wanted = hash_to_rows(pl.Series(values), 100).to_list()
    assert rows_of(tmp_path)["category_1"].to_list() == wanted


def test_too_many_bad_rows_stop_ingest(data_settings: DataSettings, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(
        "\n".join([criteo_line()] * 5 + [criteo_line("7")] * 5) + "\n"
    )
    with pytest.raises(InputError, match="5 of 10 rows are bad") as caught:
        run(data_settings, tmp_path, "criteo", criteo_section(["log.txt"]))
    assert str(caught.value).count("label outside") == 3 and "\n" not in str(caught.value)


@pytest.mark.parametrize("file_format", ["csv", "tsv", "parquet"])
def test_table_formats_agree(data_settings: DataSettings, tmp_path: Path, file_format: str) -> None:
    shuffled = LOG.sample(fraction=1.0, shuffle=True, seed=1)
    path = tmp_path / f"log.{file_format}"
    if file_format == "parquet":
        shuffled.write_parquet(path)
    else:
        shuffled.write_csv(path, separator="," if file_format == "csv" else "\t")
    section = SECTION | {"files": [path.name], "file_format": file_format}
    report = run(data_settings, tmp_path, "table", section)
    rows, schema = rows_of(tmp_path), Schema.load(tmp_path / "windows")
    assert (report.rows, report.base_rate, schema.domains) == (40, 0.25, ["phone", "desk", "other"])
    assert rows["event_time"].to_list() == (LOG["time"] * 1000).to_list()
    assert (rows["label_time"] - rows["event_time"]).unique().to_list() == [60_000]
    assert rows["price"].to_list() == pytest.approx(LOG["price"].log1p().to_list(), abs=1e-5)
    assert rows["user"].to_list() == hash_to_rows(LOG["user"], 50).to_list()
    assert rows["domain"].to_list() == LOG["device"].to_list()
    assert rows["group"].n_unique() == 5


def test_table_quarantines_bad_rows(data_settings: DataSettings, tmp_path: Path) -> None:
    text = LOG.cast(pl.String).to_dict(as_series=False)
    text["time"][0], text["clicked"][1], text["price"][2], text["price"][3] = "", "3", "cheap", ""
    pl.DataFrame(text).write_csv(tmp_path / "log.csv")
    report = run(data_settings, tmp_path, "table", SECTION, quarantine_limit=0.2)
    kept = pl.read_parquet(tmp_path / "windows" / "quarantine.parquet")
    assert (report.rows, report.quarantined) == (37, 3)
    assert kept["reason"].to_list() == [
        "missing or unparsable time",
        "label outside {0, 1}",
        "unparsable number in price",
    ]
    assert rows_of(tmp_path)["price"].null_count() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ["lgo.csv"]}, "lgo.csv: no such file"),
        ({"dense": ["prize"]}, "no column 'prize'; did you mean 'price'"),
        ({"group": "xyz"}, "no column 'xyz'; columns: time, clicked"),
        ({"file_format": "parquet"}, "log.csv: cannot be read as parquet"),
    ],
)
def test_mistakes_are_one_line(
    data_settings: DataSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    with pytest.raises(InputError, match=message) as caught:
        run(data_settings, tmp_path, "table", SECTION | change)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_written_as_text_with_their_file(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG.write_csv(tmp_path / "1.csv")
    LOG.with_columns(clicked=pl.lit(7)).head(1).write_csv(tmp_path / "2.csv")
    report = run(
        data_settings, tmp_path, "table", SECTION | {"files": ["*.csv"]}, quarantine_limit=0.1
    )
    kept = pl.read_csv(tmp_path / "windows" / "quarantine.csv")
    assert kept.drop("content").rows() == [(40, "2.csv", "label outside {0, 1}")]
    assert report.quarantined_by_reason == {"label outside {0, 1}": 1}


def test_a_failed_ingest_leaves_the_folders_as_they_were(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text((criteo_line() + "\n") * 9 + "no\n" * 9)
    (tmp_path / "oracle").mkdir()
    (tmp_path / "oracle" / "mine").write_text("")
    with pytest.raises(InputError, match="9 of 18 rows are bad"):
        run(data_settings, tmp_path, "criteo", criteo_section(["log.txt"]))
    assert not (tmp_path / "windows").exists()
    assert [path.name for path in (tmp_path / "oracle").iterdir()] == ["mine"]


def test_windows_are_not_written_over_others(data_settings: DataSettings, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    run(data_settings, tmp_path, "table", SECTION)
    before = rows_of(tmp_path)
    with pytest.raises(InputError, match="windows: is not empty"):
        run(data_settings, tmp_path, "table", SECTION)
    assert rows_of(tmp_path).equals(before)


def test_unknown_dataset_names_the_nearest(data_settings: DataSettings) -> None:
    with pytest.raises(InputError, match="did you mean 'synthetic'"):
        load_dataset(data_settings.model_copy(update={"dataset": "sinthetic"}), PARAMS / "datasets")


def test_impression_lists(data_settings: DataSettings, tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "time": [1_704_070_800, 1_704_070_900],
            "seen": [[3, 1, 2], [1, 4]],
            "hit": [[1, 1], []],
        }
    ).with_columns(pl.col("hit").cast(pl.List(pl.Int64))).write_parquet(tmp_path / "log.parquet")
    section = {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "time", "unit": "s"},
        "explode": {"shown": "seen", "clicked": "hit", "item": "candidate"},
        "dense": ["shown_count"],
        "categorical": [{"column": "candidate", "table_rows": 50}],
    }
    run(data_settings, tmp_path, "table", section)
    rows = rows_of(tmp_path)
    assert rows["label"].to_list() == [0, 1, 0, 0, 0]
    assert rows["group"].to_list() == [0, 0, 0, 1, 1]
    assert rows["candidate"].to_list() == hash_to_rows(pl.Series([3, 1, 2, 1, 4]), 50).to_list()


def click_log() -> pl.DataFrame:
    """Three items clicked over four hours; session s has clicked item 1 before."""
    return pl.DataFrame(
        {
            "time": [HOUR_MS * hour + 1000 * i for hour in range(4) for i in range(30)],
            "item": [i % 3 for _ in range(4) for i in range(30)],
            "session": [f"s{hour}-{i // 2}" for hour in range(4) for i in range(30)],
        }
    )


CLICKS: dict[str, Any] = {
    "files": ["log.parquet"],
    "file_format": "parquet",
    "time": {"column": "time", "unit": "ms", "earliest": "1970-01-01"},
    "sample_negatives": {
        "item": "item",
        "session": "session",
        "per_click": 2,
        "popularity_hours": 1,
        "seed": 3,
    },
    "categorical": [{"column": "item", "table_rows": 50}],
    "counters": [{"by": ["item"], "bin_minutes": 60, "hours": [1, 2]}],
}


def test_negatives_are_never_clicked_items_of_the_session(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    log = click_log()
    log.write_parquet(tmp_path / "log.parquet")
    report = run(data_settings, tmp_path, "table", CLICKS)
    rows = rows_of(tmp_path)
    # No past, no negatives in hour 0
    assert (report.rows, report.base_rate) == (270, pytest.approx(1 / 3))
    hashed = log.with_row_index("group").with_columns(hash_to_rows(log["item"], 50))
    session = hashed.with_columns(pl.col("group").cast(pl.Int64))
    negatives = rows.filter(pl.col("label") == 0).join(
        session.select("group", "session", "time"), on="group"
    )
    clash = negatives.join(session, on=["session", "item"]).filter(
        pl.col("time_right") <= pl.col("time")
    )
    assert clash.height == 0


def test_counters_know_only_earlier_bins(data_settings: DataSettings, tmp_path: Path) -> None:
    click_log().write_parquet(tmp_path / "log.parquet")
    run(data_settings, tmp_path, "table", CLICKS)
    whole = rows_of(tmp_path)
    changed = click_log().with_columns(
        item=pl.when(pl.col("time") >= 3 * HOUR_MS).then(7).otherwise("item")
    )
    other = tmp_path / "other"
    other.mkdir()
    changed.write_parquet(other / "log.parquet")
    run(data_settings, other, "table", CLICKS)
    names = [name for name in whole.columns if name.startswith("item_")]
    assert "item_clicks_1h" in names and len(names) == 7
    early = pl.col("event_time") < 3 * HOUR_MS
    assert whole.filter(early).equals(rows_of(other).filter(early))
    hour = whole.filter(pl.col("event_time") // HOUR_MS == 2)
    counted = (
        whole.filter(pl.col("event_time") // HOUR_MS == 1)
        .group_by("item")
        .agg(pl.len(), pl.col("label").sum())
    )
    joined = hour.join(counted, on="item", suffix="_before")
    assert joined["item_examples_1h"].to_list() == pytest.approx(
        joined["len"].log1p().to_list(), rel=1e-5
    )
    assert joined["item_clicks_1h"].to_list() == pytest.approx(
        joined["label_before"].log1p().to_list(), rel=1e-5
    )


def test_hash_is_that_of_the_xxh3_specification() -> None:
    assert hash_text(pl.Series(["abc", None])).tolist() == [0x78AF5F94892F3950, 0]


def test_rows_of_texts_never_change() -> None:
    assert hash_to_rows(pl.Series(["a", None, "b"]), 1000).to_list() == [901, 0, 341]
    lists = hash_to_rows(pl.Series([["a", "b"], [], None]), 1000)
    assert lists.to_list() == [[901, 341], [], []]


def test_rows_are_spread_over_the_whole_table() -> None:
    rows = hash_to_rows(pl.Series(range(20_000)), 11)
    counts = rows.value_counts().sort("count")["count"]
    assert rows.unique().sort().to_list() == list(range(1, 11))
    assert counts[0] > 1_800 and counts[-1] < 2_200  # 2,000 each, deviation 42
