"""Serving's encoder of single rows gives what ingest's encoder of frames gives, on any value."""

import subprocess
import sys
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.encoder_format import DenseEncoding, DomainEncoding, IdEncoding, RawColumn
from recsys.data.raw_values import MomentSettings
from recsys.data.vocabulary import Step, Vocabulary
from recsys.serving import raw_encoder
from recsys.serving.raw_encoder import RawEncoder, columns_of
from tests.support.projects import ROOT

ROWS = 997
VOCABULARY = Vocabulary([Step("w1", ["red", "1", "true"]), Step(None, ["0.5", "new"])])
HOSTILE = [
    "", " ", "NA", "nan", "-", "-0", "-0.0", "1.0", "1.00", "01.0", "1.5", "0.5", "True", "FALSE",
    "true", "None", "\\N", "red", " red", "x\n", "1.0\n", "é", "\u00a0", "\u200b", "\x1c",
    "1e5", "inf", "-Infinity", "+1.5", "1_000", ".5", "5.", "0x1", "١.0", "a,b", "[1, 2]", "é" * 99,
]  # fmt: skip
TEXTS = st.none() | st.sampled_from(HOSTILE) | st.text(max_size=12)
FLOATS = st.none() | st.floats() | st.sampled_from([-0.0, 1e-5, 1.5e-5, 1e-6, 1e16, 2.0**63, 0.1])
INTEGERS = st.none() | st.integers(-(2**63), 2**63 - 1)
DTYPES = {"integer": pl.Int64(), "number": pl.Float64(), "text": pl.String()}
VALUES = {"integer": INTEGERS, "number": FLOATS, "text": TEXTS}


def same(encoder: Encoder, columns: dict[str, list[Any]], dtypes: dict[str, Any]) -> None:
    """Check that both encoders give the same, or both refuse."""
    count = len(next(iter(columns.values())))
    frame = pl.DataFrame(columns, schema=dtypes)
    try:
        expected = encoder.encode(frame)
    except InputError:
        with pytest.raises(InputError):
            RawEncoder(encoder).encode(columns, count)
        return
    found = RawEncoder(encoder).encode(columns, count)
    for place, one in enumerate(encoder.dense):
        values = expected[one.name].to_numpy().astype(np.float32)
        np.testing.assert_array_almost_equal_nulp(
            np.nan_to_num(found.dense[:, place], nan=-9), np.nan_to_num(values, nan=-9), nulp=1
        )
    for one in encoder.ids:
        if one.is_list:
            rows, counts = found.lists[one.name]
            assert counts.tolist() == expected[one.name].list.len().to_list()
            assert rows.tolist() == [row for rows in expected[one.name] for row in rows]
        else:
            assert found.ids[one.name].tolist() == expected[one.name].to_list()


@pytest.mark.parametrize("kind", ["integer", "number", "text"])
@pytest.mark.parametrize("is_text", [False, True])
@settings(max_examples=30, derandomize=True)
@given(data=st.data())
def test_categories_of_any_value(kind: Any, is_text: bool, data: st.DataObject) -> None:
    encoder = Encoder(
        [RawColumn("a", kind, is_text=is_text), RawColumn("b", kind, is_text=is_text)],
        [],
        [
            IdEncoding("a", ["a"], ROWS),
            IdEncoding("cross", ["b", "a"], ROWS),
            IdEncoding("known", ["b"], 10, "vocabulary"),
        ],
        vocabularies={"known": VOCABULARY},
        stripped=["a"] if is_text else [],
    )
    pairs = data.draw(st.lists(st.tuples(VALUES[kind], VALUES[kind]), min_size=1, max_size=8))
    columns = {"a": [a for a, _ in pairs], "b": [b for _, b in pairs]}
    same(encoder, columns, {"a": DTYPES[kind], "b": DTYPES[kind]})


@pytest.mark.parametrize(
    ("kind", "is_text"), [("integer", False), ("number", False), ("text", True)]
)
@pytest.mark.parametrize("as_they_are", [False, True])
@settings(max_examples=30, derandomize=True)
@given(data=st.data())
def test_numbers_of_any_value(
    kind: Any, is_text: bool, as_they_are: bool, data: st.DataObject
) -> None:
    encoder = Encoder(
        [RawColumn("x", "number", is_text=is_text)],
        [DenseEncoding("x", "x", as_they_are)],
        [],
        stripped=["x"] if is_text else [],
    )
    columns = {"x": data.draw(st.lists(VALUES[kind], min_size=1, max_size=8))}
    same(encoder, columns, {"x": DTYPES[kind]})


@settings(max_examples=30, derandomize=True)
@given(
    st.lists(st.none() | st.lists(TEXTS, max_size=4), min_size=1, max_size=5),
    st.lists(TEXTS, min_size=1, max_size=5),
)
def test_lists_of_any_value(lists: list[Any], texts: list[Any]) -> None:
    tags = Encoder(
        [RawColumn("tags", "text", is_list=True, is_text=True)],
        [],
        [IdEncoding("tags", ["tags"], ROWS, is_list=True)],
    )
    same(tags, {"tags": lists}, {"tags": pl.List(pl.String)})
    split = Encoder(
        [RawColumn("tags", "text", is_text=True)],
        [],
        [IdEncoding("tags", ["tags"], ROWS, is_list=True, separator=",")],
    )
    same(split, {"tags": texts}, {"tags": pl.String})


CLOCK = ["event_hour", "event_weekday"]
ISO_TIMES = [
    "2024-03-31", "2024-03-31T01:30", "2024-03-31 02:30:00", "2024-10-27T02:30:00",
    "2024-02-29T23:59:59.999999Z", "2024-01-01T00:00:00+05:30", "2024-01-01 10:00:00 -0800",
    "2023-02-29", "1989-12-31", "2100-01-01", "soon", "", None, "2024-01-01T24:00", " 2024-05-05 ",
]  # fmt: skip


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("text", ISO_TIMES)
def test_times_as_text(text: str | None, zone: str | None) -> None:
    moment = MomentSettings(column="ts", unit="datetime", zone=zone)
    same(clock_encoder("text", moment), {"ts": [text]}, {"ts": pl.String})


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@settings(max_examples=30, derandomize=True)
@given(st.floats(6e8, 4.2e9) | st.integers(600_000_000, 4_200_000_000) | st.none())
def test_times_as_numbers(unit: Any, seconds: float | None) -> None:
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    time = None if seconds is None else seconds * factor
    dtype = pl.Int64 if isinstance(time, int) else pl.Float64
    encoder = clock_encoder("number", MomentSettings(column="ts", unit=unit))
    same(encoder, {"ts": [time]}, {"ts": dtype})


def test_times_as_moments() -> None:
    moment = MomentSettings(column="ts", unit="datetime")
    encoder = clock_encoder("time", moment)
    same(encoder, {"ts": [datetime(2024, 5, 6, 7, 8)]}, {"ts": pl.Datetime("us")})
    same(encoder, {"ts": [datetime(2024, 5, 6, 7, tzinfo=UTC)]}, {"ts": pl.Datetime("us", "UTC")})
    same(encoder, {"ts": [date(2024, 5, 6)]}, {"ts": pl.Date})


def clock_encoder(kind: Any, moment: MomentSettings) -> Encoder:
    ids = [IdEncoding(name, [name], ROWS) for name in CLOCK]
    column = RawColumn("ts", kind, is_text=kind == "text")
    return Encoder([column], [], ids, time=moment, clock=CLOCK, stripped=["ts"])


@settings(max_examples=40, derandomize=True)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.booleans())
def test_domains_of_any_value(values: list[Any], has_other: bool) -> None:
    domain = DomainEncoding("site", {"f": "feed", "1": "video"}, "video" if has_other else None)
    encoder = Encoder([], [], [], domains=["feed", "video"], domain=domain)
    try:
        expected = encoder.domain_of(pl.DataFrame({"site": values}, schema={"site": pl.String}))
    except InputError:
        with pytest.raises(InputError, match="which is not a domain"):
            RawEncoder(encoder).domains_of({"site": values}, len(values))
        return
    assert expected is not None
    found = RawEncoder(encoder).domains_of({"site": values}, len(values))
    assert found is not None and found.tolist() == expected.to_list()


def test_expressions_and_formats_of_times_are_read_by_polars() -> None:
    moment = MomentSettings(column="ts", unit="datetime", format="%d/%m/%Y %H:%M")
    encoder = Encoder(
        [RawColumn("q", "text", is_text=True), RawColumn("ts", "text", is_text=True)],
        [],
        [IdEncoding("long", ["long"], ROWS), IdEncoding("event_hour", ["event_hour"], ROWS)],
        derived=[("long", "CASE WHEN LENGTH(q) > 2 THEN 'yes' ELSE 'no' END")],
        time=moment,
        clock=["event_hour"],
        stripped=["ts"],
    )
    columns = {"q": ["abc", "a", None], "ts": ["31/01/2024 10:30"] * 3}
    same(encoder, columns, {"q": pl.String, "ts": pl.String})
    shared = RawEncoder(encoder).encode(columns | {"ts": columns["ts"][:1]}, 3).ids
    np.testing.assert_equal(shared, RawEncoder(encoder).encode(columns, 3).ids)


def test_remembered_values_stay_apart_by_type() -> None:
    encoder = RawEncoder(Encoder([RawColumn("a", "text")], [], [IdEncoding("a", ["a"], ROWS)]))
    rows = [encoder.encode({"a": [one]}, 1).ids["a"][0] for one in (1, True, 1.0, "1", 1, True)]
    assert rows[0] == rows[2] == rows[3] == rows[4] != rows[1] == rows[5]


@pytest.mark.parametrize(
    ("kind", "batches"),
    [
        ("text", [["a", "b"], ["b", "a", "a"], ["b", None], [None, "a"], ["new", "a"], ["a", 1]]),
        ("integer", [[0, 1, 2], [2, 1, 1], [1, None], [True, 0], [1.0, 2.0], ["1", "2"], [7, 1]]),
    ],
)
def test_a_batch_of_remembered_values_is_encoded_as_one_of_new_ones(
    kind: Any, batches: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_encoder, "REMEMBERED", 3)  # some are forgotten on the way
    format_ = Encoder([RawColumn("a", kind)], [], [IdEncoding("a", ["a"], ROWS)])
    encoder = RawEncoder(format_)
    for batch in [*batches, *batches]:
        found = encoder.encode({"a": batch}, len(batch)).ids["a"]
        alone = [RawEncoder(format_).encode({"a": [one]}, 1).ids["a"][0] for one in batch]
        assert found.tolist() == alone


def test_a_column_that_only_later_rows_have_is_read() -> None:
    columns = [
        RawColumn("a", "text"),
        RawColumn("b", "text"),
        RawColumn("c", "text", optional=True),
    ]
    rows = [{"a": "x", "b": "y"}, {"a": "u", "b": "v", "c": "w"}]
    found, count = columns_of(rows, Encoder(columns, [], []))
    assert count == 2 and [list(found[name]) for name in "abc"] == [
        ["x", "u"],
        ["y", "v"],
        [None, "w"],
    ]
    with pytest.raises(InputError, match="row 1: column 'b' is missing; other rows have it"):
        columns_of([rows[0], {"a": "u", "d": "v"}], Encoder(columns, [], []))


def test_rows_and_frames_give_the_same_columns() -> None:
    rows = [{"a": 1, "b": None, "c": 5}, {"a": 2}]
    frame = pl.DataFrame({"a": [1, 2], "b": [None, None], "c": [5, None]})
    encoder = Encoder([RawColumn("a", "integer"), RawColumn("b", "text", optional=True)], [], [])
    for one in (rows, frame, frame.to_pandas(), frame.to_dict(as_series=False)):
        assert columns_of(one, encoder) == ({"a": [1, 2], "b": [None, None]}, 2)
    with pytest.raises(InputError, match="'a' is missing; did you mean 'aa'"):
        columns_of([{"aa": 1}], encoder)


def test_serving_imports_nothing_that_trains() -> None:
    code = (
        "import sys; import recsys.serving.predictor, recsys.serving.raw_encoder; "
        "heavy = {'torch', 'torchrec', 'fbgemm_gpu', 'prefect', 'mlflow', 'polars', 'pandas', "
        "'pyarrow', 'sklearn', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
