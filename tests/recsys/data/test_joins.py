"""Side tables joined by key: a row of the log stays one row, and nothing comes from the future."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import InputError
from recsys.data.encoding import hash_to_rows
from recsys.data.settings import DataSettings, JoinSettings, MomentSettings
from recsys.data.sources.joins import read_side_tables, with_joined
from tests.support.raw_logs import LOG, SECTION, rows_of, run

TIME = MomentSettings(column="time", unit="ms", earliest="1970-01-01")
ADS = {"files": ["ads.csv"], "file_format": "csv", "keys": {"ad": "ad_id"}, "columns": ["brand"]}


def joined(folder: Path, log: pl.DataFrame, side: pl.DataFrame, **changes: Any) -> pl.DataFrame:
    side.write_csv(folder / "ads.csv")
    tables = read_side_tables([JoinSettings.model_validate(ADS | changes)], folder, ["NULL"])
    return with_joined(log, tables, TIME, ["NULL"])


def test_keys_are_one_whatever_their_types_and_rows_without_one_get_nothing(tmp_path: Path) -> None:
    side = pl.DataFrame({"ad_id": ["1.0", "2", "NULL", "x"], "brand": ["a", "b", "c", "d"]})
    log = pl.DataFrame({"ad": [2, 1, None, 7, 2]})
    found = joined(tmp_path, log, side, matched="known")
    assert found["brand"].to_list() == ["b", "a", None, None, "b"]
    assert found["known"].to_list() == [True, True, False, False, True]
    assert found["ad"].to_list() == log["ad"].to_list()


def test_a_key_of_two_rows_is_refused_by_its_name(tmp_path: Path) -> None:
    side = pl.DataFrame({"ad_id": ["5", "7", "7.0"], "brand": ["a", "b", "b"]})
    with pytest.raises(InputError, match=r"1 keys have more than one row, .* ad_id '7'; leave one"):
        joined(tmp_path, pl.DataFrame({"ad": [7]}), side)


moments = st.integers(0, 12)


@given(
    side=st.lists(st.tuples(st.integers(0, 2), moments), unique=True, max_size=12),
    log=st.lists(st.tuples(st.integers(0, 3), st.none() | moments), min_size=1, max_size=12),
    block=st.integers(1, 12),
)
@settings(max_examples=40)
def test_a_row_gets_the_newest_that_holds_already_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    side: list[tuple[int, int]],
    log: list[tuple[int, int | None]],
    block: int,
) -> None:
    folder = tmp_path_factory.mktemp("joins")
    rows = {"ad_id": [key for key, _ in side], "since": [since for _, since in side]}
    frame = pl.DataFrame(rows, schema={"ad_id": pl.Int64, "since": pl.Int64})
    frame.with_columns(brand=pl.col("since")).write_csv(folder / "ads.csv")
    since = {"column": "since", "unit": "ms", "earliest": "1970-01-01"}
    tables = read_side_tables([JoinSettings.model_validate(ADS | {"time": since})], folder, [])
    columns = {"ad": [key for key, _ in log], "time": [time for _, time in log]}
    whole = pl.DataFrame(columns, schema={"ad": pl.Int64, "time": pl.Int64})
    found = pl.concat(with_joined(part, tables, TIME, []) for part in whole.iter_slices(block))
    expected = [
        max((s for k, s in side if k == key and time is not None and s <= time), default=None)
        for key, time in log
    ]
    assert [None if one is None else int(one) for one in found["brand"]] == expected


def test_labels_of_another_file_are_known_when_that_says(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    log = LOG.drop("clicked").with_row_index("click_id")
    log.write_csv(tmp_path / "log.csv")
    conversions = log[::5].select("click_id", at=pl.col("time") + 900)
    conversions.write_csv(tmp_path / "conversions.csv")
    join = {
        "files": ["conversions.csv"],
        "file_format": "csv",
        "keys": {"click_id": "click_id"},
        "columns": ["at"],
        "matched": "converted",
    }
    section = SECTION | {
        "joins": [join],
        "label": "converted",
        "label_time": {"column": "at", "unit": "s"},
    }
    report = run(data_settings, tmp_path, "table", section)
    rows = rows_of(tmp_path)
    assert (report.rows, report.base_rate) == (40, 0.2)
    delay = (rows["label_time"] - rows["event_time"]).to_list()
    assert delay == [900_000 if row % 5 == 0 else 60_000 for row in range(40)]


def test_what_is_joined_can_be_filtered_derived_from_and_counted_by(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    users = pl.DataFrame({"id": ["u0", "u1", "u2"], "age": [30, 40, 50], "city": ["a", "b", "a"]})
    users.write_parquet(tmp_path / "users.parquet")
    join = {
        "files": ["users.parquet"],
        "file_format": "parquet",
        "keys": {"user": "id"},
        "columns": ["age", "city"],
        "prefix": "user_",
    }
    section = SECTION | {
        "joins": [join],
        "filter": "user_city IS NOT NULL",
        "columns": {"decade": "user_age / 10"},
        "dense": ["price", "user_age"],
        "categorical": [
            {"column": "user_city", "table_rows": 50},
            {"column": "decade", "table_rows": 50},
        ],
        "counters": [{"by": ["user_city"], "bin_minutes": 10, "hours": [1]}],
    }
    report = run(data_settings, tmp_path, "table", section)
    rows = rows_of(tmp_path)
    kept = LOG.filter(pl.col("user").is_in(users["id"].to_list()))
    city = kept["user"].replace_strict(dict(users.select("id", "city").rows()))
    assert (report.rows, report.dropped) == (24, {"filter": 16})
    assert rows["user_city"].to_list() == hash_to_rows(city, 50).to_list()
    assert rows["user_age"].to_list() == pytest.approx(
        kept["user"].replace_strict(dict(users.select("id", "age").rows())).log1p().to_list()
    )
    assert rows["user_city_examples_1h"].n_unique() > 1


@pytest.mark.parametrize(
    "labels",
    [
        {"explode": {"shown": "shown", "clicked": "clicked", "item": "ad"}},
        {
            "sample_negatives": {
                "item": "ad", "session": "user", "per_click": 2, "popularity_hours": 2, "seed": 1,
            }
        },
    ],
    ids=["explode", "sample_negatives"],
)  # fmt: skip
def test_an_example_gets_the_features_of_its_own_item(
    labels: dict[str, Any], data_settings: DataSettings, tmp_path: Path
) -> None:
    start = 1_704_067_200
    log = pl.DataFrame(
        {
            "time": [start + 600 * row for row in range(60)],
            "user": [f"u{row % 20}" for row in range(60)],
            "ad" if "sample_negatives" in labels else "clicked": [row % 7 for row in range(60)],
        }
    )
    if "explode" in labels:
        log = log.with_columns(
            pl.concat_list("clicked"), shown=pl.concat_list("clicked", (pl.col("clicked") + 1) % 7)
        )
    log.write_parquet(tmp_path / "log.parquet")
    side = pl.DataFrame({"id": range(7), "brand": [f"b{ad % 3}" for ad in range(7)]})
    side.with_columns(price=pl.col("id").cast(pl.String)).write_parquet(tmp_path / "ads.parquet")
    section = {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "time", "unit": "s"},
        "joins": [
            {
                "files": ["ads.parquet"],
                "file_format": "parquet",
                "keys": {"ad": "id"},
                "columns": ["brand", "price"],
            }
        ],
        "dense": ["price"],
        "categorical": [
            {"column": "ad", "table_rows": 1000},
            {"column": "brand", "table_rows": 1000},
        ],
        **labels,
    }
    run(data_settings, tmp_path, "table", section)
    rows = rows_of(tmp_path)
    ids = hash_to_rows(side["id"], 1000).to_list()
    brands = dict(zip(ids, hash_to_rows(side["brand"], 1000), strict=True))
    assert rows.height > 100 and rows["ad"].n_unique() == 7
    assert rows["brand"].to_list() == [brands[ad] for ad in rows["ad"]]
    prices = dict(zip(ids, side["id"].log1p().to_list(), strict=True))
    assert rows["price"].to_list() == pytest.approx([prices[ad] for ad in rows["ad"]], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["brnd"]}, "ads.csv: no column 'brnd'; did you mean 'brand'"),
        ({"keys": {"usr": "ad_id"}}, "log.csv: no column 'usr'; did you mean 'user'"),
        ({"columns": ["price"]}, "a column 'price' of its own, .* the one in joins another prefix"),
        ({"files": ["adds.csv"]}, "adds.csv: no such file"),
        ({"columns": []}, "give columns or matched"),
        ({"columns": ["own:x"]}, "names that start with 'own:' are taken"),
    ],
)
def test_mistakes_are_one_line(
    change: dict[str, Any], message: str, data_settings: DataSettings, tmp_path: Path
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    side = pl.DataFrame({"ad_id": ["u0"], "brand": [1], "price": [2], "own:x": [3]})
    side.write_csv(tmp_path / "ads.csv")
    section = SECTION | {"joins": [ADS | {"keys": {"user": "ad_id"}} | change]}
    with pytest.raises((InputError, ValueError), match=message):
        run(data_settings, tmp_path, "table", section)
    assert not (tmp_path / "windows").exists()
