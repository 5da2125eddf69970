"""Raw rows through the encoder give, row by row, what ingest wrote."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.config import InputError
from recsys.data.encoder import Encoder, RawColumn, encoder_of_ids
from recsys.data.ingest import ingest
from recsys.data.schema import MANIFEST_FILE, CategoricalFeature, Schema
from recsys.data.settings import DatasetSettings, DataSettings, SyntheticSettings
from recsys.serving.raw_encoder import RawEncoder, columns_of
from tests.support.raw_logs import LOG, SECTION, rows_of, run

START_S = 1_704_070_800
TEXTS = ["a", "b", "ad.1", "1", "1.0", "-0", "True", "", " ", "NA", "0.10", None]
SCHEMA = {
    "ts": pl.Int64,
    "y": pl.Int64,
    "place": pl.String,
    "text": pl.String,
    "whole": pl.Int64,
    "real": pl.Float64,
    "flag": pl.Boolean,
    "tags": pl.List(pl.String),
    "words": pl.String,
    "number": pl.Float64,
}
DESCRIBED: dict[str, Any] = {
    "time": {"column": "ts", "unit": "s"},
    "label": "y",
    "domain": {"column": "place", "values": {"1": "feed", "b": "video"}, "other": "rest"},
    "columns": {"both": "CONCAT(text, '_', place)"},
    "dense": ["number", "whole"],
    "categorical": [
        {"column": "text", "table_rows": 60},
        {"column": "text", "name": "frequent", "table_rows": 6}
        | {"encoding": {"kind": "vocabulary", "min_count": 2}},
        {"column": "whole", "name": "ad.whole", "table_rows": 50},
        {"column": "real", "table_rows": "auto"},
        {"column": "flag", "table_rows": 50},
        {"column": "words", "table_rows": 40, "kind": "list", "separator": "|"},
        {"column": "both", "table_rows": 30},
        {"column": "event_hour", "table_rows": 50},
        {"column": "event_weekday", "table_rows": 50},
    ],
    "crosses": [
        ["text", "whole"],
        {"columns": ["flag", "event_hour", "real"], "name": "often", "table_rows": 20}
        | {"encoding": {"kind": "vocabulary", "min_count": 2}},
    ],
}
LIST = {"column": "tags", "table_rows": 30, "kind": "list"}


@st.composite
def logs(draw: st.DrawFn) -> pl.DataFrame:
    """A log of three days."""
    row = st.tuples(
        st.integers(0, 3 * 86_399),
        st.integers(0, 1),
        st.sampled_from(["1", "b", "1.0", "elsewhere", None]),
        st.sampled_from(TEXTS),
        st.sampled_from([None, 0, 1, -7, 2**40]),
        st.sampled_from([None, 0.0, -0.0, 1.0, 0.1, 1e300, float("nan"), float("inf")]),
        st.sampled_from([None, True, False]),
        st.one_of(st.none(), st.lists(st.sampled_from(TEXTS), max_size=3)),
        st.sampled_from([None, "", "a", "a|b", "[1.0| NA]", "x||'y'"]),
        st.sampled_from([None, 1.5, -2.0, 1e30, float("nan"), float("-inf")]),
    )
    rows = draw(st.lists(row, min_size=1, max_size=25))
    log = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return log.with_columns(ts=START_S + pl.col("ts")).sort("ts", maintain_order=True)


@settings(max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    log=logs(),
    file_format=st.sampled_from(["parquet", "jsonl", "csv"]),
    hours=st.sampled_from([5, 24]),
)
def test_raw_rows_give_what_ingest_wrote(
    log: pl.DataFrame, file_format: str, hours: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    path, categorical = folder / f"log.{file_format}", list(DESCRIBED["categorical"])
    if file_format == "csv":
        log = log.drop("tags")
        log.write_csv(path)
        log = pl.read_csv(path, infer_schema=False)
    elif file_format == "jsonl":
        log = log.with_columns(pl.col("real", "number").fill_nan(None)).with_columns(
            pl.when(pl.col("real", "number").is_finite()).then(pl.col("real", "number"))
        )
        log.write_ndjson(path)
    else:
        log.write_parquet(path)
    categorical += [] if file_format == "csv" else [LIST]
    section = DESCRIBED | {"files": [path.name], "file_format": file_format}
    run(DataSettings(window_hours=hours), folder, "table", section | {"categorical": categorical})
    encoder, schema = Encoder.load(folder / "windows"), Schema.load(folder / "windows")
    read = [column.name for column in encoder.columns]
    first = 0
    for window in schema.windows:
        part = pl.read_parquet(folder / "windows" / window.name / "part-*.parquet")
        raw = log[first : first + part.height]
        first += part.height
        found = encoder.encode(raw.select(read), window.name)
        wanted = part.select(found.columns)
        assert found.equals(wanted), (found, wanted)
        assert found.columns == [*schema.dense, *(one.name for one in schema.categorical)]
        domains = encoder.domain_of(raw)
        assert domains is not None and domains.to_list() == part["domain"].to_list()
        for place in range(min(3, part.height)):
            one = raw[place : place + 1].to_dicts()  # as one would send it, without types
            assert encoder.encode(pl.DataFrame(one), window.name).equals(wanted[place : place + 1])
    assert first == log.height


def test_given_columns_and_those_of_impressions(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    log = pl.DataFrame(
        {
            "time": [START_S + 3_600 * i for i in range(8)],
            "user": ["u", "v"] * 4,
            "seen": [["3", "1", "2"], ["1", "4"]] * 4,
            "hit": [["1"], ["4"]] * 4,
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    section = {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "time", "unit": "s"},
        "explode": {"shown": "seen", "clicked": "hit", "item": "ad"},
        "dense": ["shown_count"],
        "categorical": [{"column": "ad", "table_rows": 50}, {"column": "user", "table_rows": 9}],
        "counters": [{"by": ["ad"], "bin_minutes": 60, "hours": [24]}],
        "history": {"user": "user", "item": "ad", "length": 3, "table_rows": "auto"},
    }
    run(data_settings, tmp_path, "table", section)
    part, encoder = rows_of(tmp_path), Encoder.load(tmp_path / "windows")
    origins = {column.name: (column.origin, column.optional) for column in encoder.columns}
    assert origins == {
        "shown_count": ("impressions", False),
        "ad_clicks_24h": ("counters", True),
        "ad_examples_24h": ("counters", True),
        "ad_log_rate_24h": ("counters", True),
        "ad_age": ("counters", True),
        "ad": ("impressions", False),
        "user": ("log", False),
        "history": ("history", True),
    }
    raw = (
        log.explode("seen")
        .rename({"seen": "ad"})
        .with_columns(
            shown_count=pl.len().over("time"),
            **{name: part[name] for name in origins if origins[name][0] in ("counters", "history")},
        )
    )
    found = encoder.encode(raw)
    assert found.equals(part.select(found.columns))
    alone = encoder.encode(raw.drop("history"))
    assert alone["history"].to_list() == [[]] * raw.height


def test_counts_are_looked_up_where_rows_lack_them(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    log = pl.DataFrame(
        {
            "time": [START_S + 3_600 * i for i in range(8)],
            "ad": ["a", "b", "1.0", None] * 2,
            "page": [7, 8] * 4,
            "hit": [1, 0, 1, 1] * 2,
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    counters = [{"by": by, "bin_minutes": 60, "hours": [24]} for by in (["ad"], ["ad", "page"])]
    section = {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "time", "unit": "s"},
        "label": "hit",
        "categorical": [{"column": "ad", "table_rows": 9}],
        "counters": counters,
    }
    run(data_settings, tmp_path, "table", section)
    encoder = Encoder.load(tmp_path / "windows")
    rows = pl.DataFrame({"ad": ["a", "1", None, "new"], "page": [7, 7, 8, 7]})
    found = encoder.encode(rows)
    assert found["ad_clicks_24h"].to_list() == np.log1p([2, 2, 0, 0], dtype=np.float32).tolist()
    assert found["ad_examples_24h"].to_list() == np.log1p([2, 2, 0, 0], dtype=np.float32).tolist()
    assert found["ad_age"].to_list() == np.log1p([8, 6, 5, 0]).astype(np.float32).tolist()
    assert found["ad_page_clicks_24h"].to_list() == found["ad_clicks_24h"].to_list()
    served = RawEncoder(encoder).encode(*columns_of(rows.to_dicts(), encoder))
    np.testing.assert_array_equal(served.dense, found.select(one.name for one in encoder.dense))
    given = rows.with_columns(ad_clicks_24h=pl.Series([3.0, None, 3.0, 3.0]))
    clicks = encoder.encode(given)["ad_clicks_24h"].to_list()
    assert clicks == [3.0, found["ad_clicks_24h"][1], 3.0, 3.0]
    for lacking in (encoder.encode, lambda one: RawEncoder(encoder).encode({"ad": ["a"]}, 1)):
        with pytest.raises(InputError, match="'page' is missing; 'ad_page_clicks_24h' is looked"):
            lacking(rows.drop("page"))
    path = tmp_path / "windows/counters.npz"
    with np.load(path) as arrays:
        changed = dict(arrays) | {"values0": arrays["values0"] + 1}
    for damaged, said in ((b"PK", "is damaged"), (None, "is not that of encoder.json")):
        if damaged is None:
            np.savez(path, **changed)
        else:
            path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"counters\.npz: {said}"):
            Encoder.load(tmp_path / "windows")


def test_criteo_rows(data_settings: DataSettings, tmp_path: Path) -> None:
    lines = [
        "\t".join([str(i % 2), str(i - 5), *[""] * 12, f"68fd1e6{i}", *[""] * 20, *["a"] * 5])
        for i in range(10)
    ]
    with gzip.open(tmp_path / "day_0.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    section = {"files": ["*.gz"], "start": "2024-01-01", "rows_per_second": 1, "table_rows": 100}
    run(data_settings, tmp_path, "criteo", section | {"chunk_rows": 4})
    part, encoder = rows_of(tmp_path), Encoder.load(tmp_path / "windows")
    raw = pl.DataFrame(
        [line.split("\t")[1:] for line in lines],
        schema=[column.name for column in encoder.columns],
        orient="row",
    )
    for rows in (raw, raw.with_columns(pl.col("integer_1").cast(pl.Int64))):
        found = encoder.encode(rows)
        assert found.equals(part.select(found.columns))
    examples = encoder.encode(pl.DataFrame(encoder.examples))
    assert examples.equals(part.select(examples.columns).head(3))


def test_rows_of_the_generated_stream(tmp_path: Path) -> None:
    synthetic = SyntheticSettings(rows=600, windows=2, chunk_rows=200)
    dataset = DatasetSettings(format="synthetic", synthetic=synthetic)
    ingest(DataSettings(), dataset, tmp_path / "windows", tmp_path / "oracle")
    part, encoder = rows_of(tmp_path), Encoder.load(tmp_path / "windows")
    inverse = pl.col("^dense_.*$").sign() * pl.col("^dense_.*$").cast(pl.Float64).abs().exp().sub(1)
    found = encoder.encode(part.with_columns(inverse))
    wanted = part.select(found.columns)
    assert found.select("^dense.*$").to_numpy() == pytest.approx(
        wanted.select("^dense.*$").to_numpy(), abs=1e-6, nan_ok=True
    )
    assert found.drop("^dense.*$").equals(wanted.drop("^dense.*$"))
    named = part.with_columns(
        domain=pl.col("domain").replace_strict(dict(enumerate(encoder.domains)))
    )
    for rows in (part, named):
        domains = encoder.domain_of(rows)
        assert domains is not None and domains.to_list() == part["domain"].to_list()
    assert [row["domain"] for row in encoder.examples] == [0] * 3 + [1] * 3 + [2] * 3


def encoder_of(folder: Path, settings: DataSettings, **changes: Any) -> Encoder:
    LOG.write_csv(folder / "log.csv")
    run(settings, folder, "table", SECTION | changes)
    return Encoder.load(folder / "windows")


def test_it_is_one_artifact_with_a_hash(data_settings: DataSettings, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, data_settings)
    encoder.save(tmp_path)
    assert (tmp_path / "encoder.json").read_bytes() == (
        tmp_path / "windows/encoder.json"
    ).read_bytes()
    assert Encoder.load(tmp_path) == encoder
    for path in (tmp_path / "windows").glob(f"*/{MANIFEST_FILE}"):
        assert json.loads(path.read_text())["encoder"] == encoder.hash
    (tmp_path / "other").mkdir()
    other = encoder_of(tmp_path / "other", data_settings, null_values=["u1"])
    assert other.hash != encoder.hash


def test_it_knows_what_the_log_held(data_settings: DataSettings, tmp_path: Path) -> None:
    log = LOG.with_columns(pl.when(pl.col("price") > 3).then("price"))
    (tmp_path / "a").mkdir()
    log.with_columns(flag=pl.lit(True)).write_csv(tmp_path / "a" / "log.csv")
    categorical = [{"column": name, "table_rows": 50} for name in ("user", "device", "flag")]
    run(data_settings, tmp_path / "a", "table", SECTION | {"categorical": categorical})
    assert Encoder.load(tmp_path / "a/windows").columns == [
        RawColumn("price", "number", is_text=True, optional=True),
        RawColumn("user", "text", is_text=True),
        RawColumn("device", "integer", is_text=True),
        RawColumn("flag", "boolean", is_text=True),
    ]
    log.with_columns(tags=pl.lit([1, 2])).write_parquet(tmp_path / "log.parquet")
    categorical = [{"column": "event_hour", "table_rows": 50}]
    categorical += [{"column": "tags", "table_rows": 50, "kind": "list"}]
    changes = {"files": ["log.parquet"], "file_format": "parquet", "categorical": categorical}
    run(data_settings, tmp_path, "table", SECTION | changes)
    encoder = Encoder.load(tmp_path / "windows")
    assert encoder.columns == [
        RawColumn("price", "number", optional=True),
        RawColumn("tags", "integer", is_list=True, optional=True),
        RawColumn("time", "integer"),
    ]
    assert encoder.examples[0] == {"price": None, "tags": [1, 2], "time": START_S, "device": 0}


def test_only_what_expressions_name_is_read(data_settings: DataSettings, tmp_path: Path) -> None:
    columns = {
        "kind": "CASE WHEN device = '1' THEN 'user' ELSE 'other' END",
        "kinds": "CONCAT(kind, 's')",
        "unused": "CONCAT(clicked, time)",
    }
    categorical = [{"column": "kinds", "table_rows": 50}]
    encoder = encoder_of(tmp_path, data_settings, columns=columns, categorical=categorical)
    assert [column.name for column in encoder.columns] == ["price", "device"]
    assert [name for name, _ in encoder.derived] == ["kind", "kinds"]
    rows = LOG.with_columns(pl.col("device").cast(pl.Int64))  # numbers, where the log holds text
    assert encoder.encode(rows).equals(rows_of(tmp_path).select("price", "kinds"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("price").alias("prize"), "column 'price' is missing; did you mean 'prize'"),
        (pl.lit("cheap").alias("price"), "column 'price' holds 'cheap'; expected numbers"),
        (pl.lit([1.0]).alias("price"), "column 'price' holds List.*; expected numbers"),
        (pl.lit(["a"]).alias("user"), "column 'user' holds List.*; expected one value per row"),
        (pl.lit("soon").alias("time"), "column 'time': missing or unparsable time"),
    ],
)
def test_mistakes_are_one_line(
    data_settings: DataSettings, tmp_path: Path, change: pl.Expr, message: str
) -> None:
    categorical = [*SECTION["categorical"], {"column": "event_hour", "table_rows": 50}]
    encoder = encoder_of(tmp_path, data_settings, categorical=categorical)
    rows = LOG.with_columns(change)
    rows = rows.drop("price") if "prize" in rows.columns else rows
    with pytest.raises(InputError, match=message) as caught:
        encoder.encode(rows)
    assert "\n" not in str(caught.value)


def test_an_expression_may_tell_the_domain(data_settings: DataSettings, tmp_path: Path) -> None:
    encoder = encoder_of(
        tmp_path,
        data_settings,
        columns={"kind": "CASE WHEN device = '1' THEN 'd' ELSE 'p' END"},
        domain={"column": "kind", "values": {"p": "phone", "d": "desk"}},
    )
    assert encoder.domain_column is None
    found = encoder.domain_of(LOG)
    assert found is not None and found.to_list() == (LOG["device"] == 1).cast(pl.Int32).to_list()


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["12", "-3"], "integer"),
        (["1.5", "2"], "number"),
        (["True", "false"], "boolean"),
        (["1.50", "2"], "text"),  # sent as a number it would be another text
        (["007", "2"], "text"),
        (["1e5", "2"], "text"),
        (["", "NA"], "text"),
    ],
)
def test_a_text_is_read_as_what_gives_the_text_again(
    data_settings: DataSettings, tmp_path: Path, texts: list[str], kind: str
) -> None:
    log = LOG.with_columns(user=pl.Series(texts * 20))
    log.write_csv(tmp_path / "log.csv")
    run(data_settings, tmp_path, "table", SECTION | {"group": None})
    encoder = Encoder.load(tmp_path / "windows")
    column = next(column for column in encoder.columns if column.name == "user")
    assert (column.type, column.optional) == (kind, "NA" in texts)
    examples = pl.DataFrame(encoder.examples, infer_schema_length=None)
    part = rows_of(tmp_path).sort("domain", "example_id").group_by("domain", maintain_order=True)
    found = encoder.encode(examples)
    assert found.equals(part.head(3).select(found.columns))


def test_a_domain_is_told_by_raw_value_or_name(data_settings: DataSettings, tmp_path: Path) -> None:
    encoder = encoder_of(
        tmp_path, data_settings, domain={"column": "device", "values": {"0": "phone", "1": "desk"}},
        files=["log.csv"], filter="device IN ('0', '1')",
    )  # fmt: skip
    for frame in (
        pl.DataFrame({"device": [1, 0]}),
        pl.DataFrame({"device": ["1.0", "phone"]}),
        pl.DataFrame({"domain": ["desk", "phone"]}),
        pl.DataFrame({"device": ["desk", "0"], "domain": ["no", "matter"]}),
    ):
        found = encoder.domain_of(frame)
        assert found is not None and found.to_list() == [1, 0]
    assert encoder.domain_of(pl.DataFrame({"user": ["u"]})) is None
    for value in ("tv", None):
        with pytest.raises(
            InputError, match=r"not a domain; domains: phone, desk \(in the log: 0, 1"
        ):
            encoder.domain_of(pl.DataFrame({"device": ["0", value]}))


def test_ids_are_checked() -> None:
    features = [CategoricalFeature("ad", 5), CategoricalFeature("past", 5, "list")]
    encoder = encoder_of_ids(["price"], features, ["feed", "video"])
    rows = pl.DataFrame({"price": [1.0], "ad": [4], "past": [[1, 2]]})
    assert encoder.encode(rows)["past"].to_list() == [[1, 2]]
    for name, value in (("ad", 5), ("ad", None), ("ad", "a"), ("past", [9]), ("past", 1)):
        with pytest.raises(InputError, match=f"column '{name}'"):
            encoder.encode(rows.with_columns(pl.Series(name, [value])))


ROWS = {"table_rows": 9}
USER = {"column": "user"} | ROWS
COUNTER = {"by": ["user"], "bin_minutes": 60, "hours": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crosses": [["user"]]}, "crosses"),
        ({"crosses": [["user", "nobody"]]}, "no column 'nobody'"),
        ({"crosses": [["user", "device"], ["user", "device"]]}, "'user_x_device' is listed twice"),
        ({"categorical": [USER | {"encoding": {"min_count": 3}}]}, "min_count needs kind"),
        (
            {"counters": [COUNTER], "categorical": [{"column": "user_age", "name": "own"} | ROWS]},
            "counters': the log has a column 'user_age' of its own",
        ),
    ],
)
def test_settings_that_cannot_be(
    data_settings: DataSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    LOG.with_columns(user_age=pl.lit(3)).write_csv(tmp_path / "log.csv")
    with pytest.raises((InputError, ValueError), match=message):
        run(data_settings, tmp_path, "table", SECTION | change)
    assert not (tmp_path / "windows").exists() or not list((tmp_path / "windows").iterdir())


def test_the_clock_is_utc_and_monday_is_0(data_settings: DataSettings, tmp_path: Path) -> None:
    times = ["2024-01-01T23:30:00Z", "2024-01-02T01:00:00+02:00", "2024-01-07T05:00:00Z"]
    pl.DataFrame({"time": times, "y": [0, 1, 1], "u": ["a"] * 3}).write_csv(tmp_path / "log.csv")
    section = {
        "files": ["log.csv"],
        "file_format": "csv",
        "time": {"column": "time", "unit": "datetime"},
        "label": "y",
        "dense": ["event_hour", "event_weekday"],
        "categorical": [{"column": "u", "table_rows": 9}],
    }
    run(data_settings, tmp_path, "table", section)
    found = rows_of(tmp_path).sort("event_time").select(pl.col("^event_[hw].*$").exp() - 1)
    assert found["event_hour"].round().to_list() == [23, 23, 5]  # 01:00 of +02:00 comes first
    assert found["event_weekday"].round().to_list() == [0, 0, 6]


def test_a_cross_tells_pairs_apart_and_is_missing_where_one_is(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    one, other = ["a", "b", "a", "a", None], ["b", "a", "b", None, "a"]
    log = LOG.head(5).with_columns(one=pl.Series(one), other=pl.Series(other))
    log.write_parquet(tmp_path / "log.parquet")
    changes = {"files": ["log.parquet"], "file_format": "parquet", "crosses": [["one", "other"]]}
    run(data_settings, tmp_path, "table", SECTION | changes)
    rows = rows_of(tmp_path)["one_x_other"].to_list()
    assert rows[0] == rows[2] != rows[1] and rows[3:] == [0, 0]
    assert min(rows[:3]) > 0


def test_columns_of_side_tables_are_the_callers_to_give(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    shown = {"ts": [START_S, START_S + 60], "seen": [["1", "2"], ["3"]], "hit": [["1"], []]}
    log = pl.DataFrame({**shown, "user": ["u", "v"]})
    log.write_parquet(tmp_path / "log.parquet")
    ads = pl.DataFrame({"id": [1, 2], "price": [5.0, None], "brand": ["x", "NA"]})
    ads.write_csv(tmp_path / "ads.csv")
    pl.DataFrame({"id": ["u"], "age": [30]}).write_parquet(tmp_path / "users.parquet")
    of_ad = {"files": ["ads.csv"], "file_format": "csv", "keys": {"ad": "id"}}
    of_user = {"files": ["users.parquet"], "file_format": "parquet", "keys": {"user": "id"}}
    section = {
        "files": ["log.parquet"],
        "file_format": "parquet",
        "time": {"column": "ts", "unit": "s"},
        "explode": {"shown": "seen", "clicked": "hit", "item": "ad"},
        "joins": [of_ad | {"columns": ["price", "brand"]}, of_user | {"columns": ["age"]}],
        "dense": ["price", "age"],
        "categorical": [{"column": name, "table_rows": 30} for name in ("ad", "brand")],
    }
    run(data_settings, tmp_path, "table", section)
    part, encoder = rows_of(tmp_path), Encoder.load(tmp_path / "windows")
    columns = {column.name: (column.origin, column.optional) for column in encoder.columns}
    assert columns == {
        "price": ("log", True),
        "age": ("log", True),
        "ad": ("impressions", False),
        "brand": ("log", True),
    }
    raw = (
        log.explode("seen")
        .select("user", ad="seen")
        .with_columns(price=pl.Series([5.0, None, None]), brand=pl.Series(["x", "NA", None]))
    )
    raw = raw.with_columns(age=pl.Series([30, 30, None]))
    found = encoder.encode(raw)
    assert found.equals(part.select(found.columns))
