"""Logs and YAMLs as people have them: the rows that were meant, or one line, and nothing
half-written.

Most rows are kinds of reports on other tools, rebuilt as tiny files.
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from recsys.data.encoding import hash_to_rows

START = 1_704_067_200  # 2024-01-01 00:00 UTC
HOUR_MS = 3_600_000
TABLE_ROWS = 50
Content = str | bytes | pl.DataFrame


@dataclass(frozen=True)
class Case:
    """A log, its settings, and what is expected: a ``refusal`` (part of the one line), or columns
    of the rows in their order."""

    name: str
    files: dict[str, Content]
    section: dict[str, Any]
    refusal: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    format: str = "table"
    said: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def section(**changes: Any) -> dict[str, Any]:
    """A description of log.csv with columns ts, y, c and d."""
    base: dict[str, Any] = {
        "files": ["log.csv"],
        "file_format": "csv",
        "time": {"column": "ts", "unit": "s"},
        "label": "y",
        "categorical": [{"column": "c", "table_rows": TABLE_ROWS}],
        "dense": ["d"],
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def parquet(**changes: Any) -> dict[str, Any]:
    """As :func:`section`, of log.parquet."""
    return section(**{"files": ["log.parquet"], "file_format": "parquet", **changes})


def frame(rows: int = 2, **columns: list[Any] | pl.Series) -> pl.DataFrame:
    """A log of ``rows`` hours, with other or further columns."""
    base: dict[str, Any] = {
        "ts": [START + 3600 * row for row in range(rows)],
        "y": [row % 2 for row in range(rows)],
        "c": ["a", "b", "c", "d", "e", "f"][:rows],
        "d": [float(row) for row in range(rows)],
    }
    return pl.DataFrame({**base, **columns}, strict=False)


def log(**columns: list[Any]) -> dict[str, Content]:
    """One CSV file."""
    rows = max((len(column) for column in columns.values()), default=2)
    return {"log.csv": frame(rows, **columns)}


def stored(**columns: list[Any] | pl.Series) -> dict[str, Content]:
    """One Parquet file."""
    rows = max((len(column) for column in columns.values()), default=2)
    return {"log.parquet": frame(rows, **columns)}


def ids(*values: Any) -> list[int]:
    """Table rows of texts; None is the missing value's."""
    return hash_to_rows(pl.Series(values, dtype=pl.String), TABLE_ROWS).to_list()


def zstd(text: str) -> bytes:
    return pa.compress(text.encode(), codec="zstd", asbytes=True)


def category(column: str, **changes: Any) -> list[dict[str, Any]]:
    return [{"column": column, "table_rows": TABLE_ROWS, **changes}]


def time(unit: str = "datetime", **more: Any) -> dict[str, Any]:
    return {"column": "ts", "unit": unit, **more}


def at(*texts: str) -> list[int]:
    """ms since the epoch."""
    moments = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in texts]
    return [round(moment.timestamp() * 1000) for moment in moments]


ISO = {"time": time()}
UNREAD = "missing or unparsable time"
TIMES = [
    Case("Z and offsets", log(ts=["2024-01-01T00:00:00Z", "2024-01-01T03:00:00+02:00"]),
         section(**ISO), columns={"event_time": at("2024-01-01", "2024-01-01T01:00")}),
    Case("offsets of four digits, two digits and UTC", log(ts=[
        "2024-01-01 05:30:00+0530", "2024-01-01T02:00:00+01", "2024-01-01 02:00:00 UTC"]),
         section(**ISO),
         columns={"event_time": at("2024-01-01", "2024-01-01T01:00", "2024-01-01T02:00")}),
    Case("negative offset over midnight", log(ts=["2023-12-31T20:00:00-05:00"] * 2),
         section(**ISO), columns={"event_time": at("2024-01-01T01:00") * 2}),
    Case("mixed fractions", log(ts=["2024-01-01 00:00:00", "2024-01-01 00:00:00.5",
                                    "2024-01-01 00:00:00.123456", "2024-01-01T00:00:01.1234567Z"]),
         section(**ISO), columns={"event_time": [START * 1000 + x for x in (0, 123, 500, 1123)]}),
    Case("comma as the decimal sign", log(ts=["2024-01-01 00:00:00,250"] * 2),
         section(**ISO), columns={"event_time": [START * 1000 + 250] * 2}),
    Case("dates alone", log(ts=["2024-01-01", "2024-01-02"]), section(**ISO),
         columns={"event_time": at("2024-01-01", "2024-01-02")}),
    Case("without seconds", log(ts=["2024-01-01T10:30", "2024-01-01 10:31"]), section(**ISO),
         columns={"event_time": at("2024-01-01T10:30", "2024-01-01T10:31")}),
    Case("US dates", log(ts=["04/01/2024 10:00:00", "04/02/2024 10:00:00"]), section(**ISO),
         refusal="'04/01/2024 10:00:00', which is not an ISO 8601 time; set format"),
    Case("US dates with their format", log(ts=["04/01/2024 10:00:00", "04/02/2024 10:00:00"]),
         section(time=time(format="%m/%d/%Y %H:%M:%S")),
         columns={"event_time": at("2024-04-01T10:00", "2024-04-02T10:00")}),
    Case("day first with its format", log(ts=["13/04/2024", "14/04/2024"]),
         section(time=time(format="%d/%m/%Y")),
         columns={"event_time": at("2024-04-13", "2024-04-14")}),
    Case("a format that fits nothing", log(ts=["04/01/2024"] * 2),
         section(time=time(format="%Y-%m-%d")), refusal="'%Y-%m-%d' does not match any time"),
    Case("12-hour clock", log(ts=["01/02/2024 12:30 AM", "01/02/2024 01:00 PM"]),
         section(time=time(format="%m/%d/%Y %I:%M %p")),
         columns={"event_time": at("2024-01-02T00:30", "2024-01-02T13:00")}),
    Case("Avazu's hours", log(ts=["14102100", "14102101"]),
         section(time=time(format="%y%m%d%H")),
         columns={"event_time": at("2014-10-21T00:00", "2014-10-21T01:00")}),
    Case("Avazu's hours as integers", stored(ts=[14102100, 14102101]),
         parquet(time=time(format="%y%m%d%H")),
         columns={"event_time": at("2014-10-21T00:00", "2014-10-21T01:00")}),
    Case("digits of a date without a format", stored(ts=[20240101, 20240102]), parquet(**ISO),
         refusal="holds numbers; set unit: s, ms, us or ns, or, for digits like 20240131, format"),
    Case("numbers as text under datetime", log(ts=[START, START]), section(**ISO),
         refusal="which is not an ISO 8601 time; set unit: s, ms, us or ns"),
    Case("a format with numbers", log(), section(time=time("s", format="%Y")),
         refusal="format needs unit: datetime"),
    Case("30 February", log(ts=["2024-02-30", *["2024-02-01"] * 3]), section(**ISO),
         columns={"event_time": at("2024-02-01") * 3}, quarantined={UNREAD: 1}),
    Case("words for a missing time", log(ts=["null", "", "2024-02-01", "2024-02-01"]),
         section(**ISO), columns={"event_time": at("2024-02-01") * 2}, quarantined={UNREAD: 2}),
    Case("local times", log(ts=["2024-01-01 08:00:00", "2024-01-01 09:00:00"]),
         section(time=time(zone="Asia/Shanghai")),
         columns={"event_time": at("2024-01-01", "2024-01-01T01:00")}),
    Case("local times beside an offset", log(ts=["2024-01-01 08:00:00", "2024-01-01 01:00:00Z"]),
         section(time=time(zone="Asia/Shanghai")),
         columns={"event_time": at("2024-01-01", "2024-01-01T01:00")}),
    Case("local times when clocks change", log(ts=[
        "2024-03-31 02:30:00", "2024-10-27 02:30:00", "2024-06-01 02:00:00", "2024-06-02"]),
         section(time=time(zone="Europe/Berlin")),
         columns={"event_time": at("2024-06-01T00:00", "2024-06-01T22:00")},
         quarantined={"ambiguous or nonexistent local time in Europe/Berlin": 2}),
    Case("local datetimes of Parquet", stored(ts=[datetime(2024, 1, 1, 8)] * 2),
         parquet(time=time(zone="Asia/Shanghai")), columns={"event_time": at("2024-01-01") * 2}),
    Case("datetimes with a zone of their own", stored(
        ts=pl.Series([datetime(2024, 1, 1)] * 2).dt.replace_time_zone("Asia/Shanghai")),
         parquet(**ISO), columns={"event_time": at("2023-12-31T16:00") * 2}),
    Case("dates of Parquet", stored(ts=[date(2024, 1, 1), date(2024, 1, 2)]), parquet(**ISO),
         columns={"event_time": at("2024-01-01", "2024-01-02")}),
    Case("datetimes under unit ms", stored(ts=[datetime(2024, 1, 1)] * 2),
         parquet(time=time("ms")), refusal="set unit: datetime"),
    Case("a zone that is none", log(), section(time=time(zone="Peking")),
         refusal="key 'table.time.zone': Value error, no such time zone"),
    Case("a zone with numbers", log(), section(time=time("s", zone="Asia/Shanghai")),
         refusal="zone needs unit: datetime"),
    Case("seconds as ms", log(), section(time=time("ms")),
         refusal="in the middle 1970-01-20 17:21; unit: s would give 2024-01-01 00:30"),
    Case("ms as s", log(ts=[START * 1000] * 2), section(),
         refusal="unit: ms would give 2024-01-01 00:00"),
    Case("ns as s", log(ts=[START * 10**9] * 2), section(), refusal="unit: ns would give 2024-01"),
    Case("ns", log(ts=[START * 10**9 + 1_999_999, START * 10**9 + 2_000_000]),
         section(time=time("ns")),
         columns={"event_time": [START * 1000 + 1, START * 1000 + 2]}),
    Case("us to the last digit", stored(ts=[START * 10**6 + 1_000, START * 10**6 + 999]),
         parquet(time=time("us")), columns={"event_time": [START * 1000, START * 1000 + 1]}),
    Case("fractions of a second", log(ts=[f"{START}.25", f" {START} "]), section(),
         columns={"event_time": [START * 1000, START * 1000 + 250]}),
    Case("floats in exponential form", log(ts=["1.7040672e9", "1.7040672e9"]), section(),
         columns={"event_time": [START * 1000] * 2}),
    Case("one row at 0 and one in 2262", log(ts=[0, START, START, START, 9_223_372_036]),
         section(), columns={"event_time": [START * 1000] * 3},
         quarantined={"implausible time": 2}),
    Case("years 0001 and 9999", log(ts=["0001-01-01", "9999-12-31", *["2024-01-01"] * 3]),
         section(**ISO), columns={"event_time": at("2024-01-01") * 3},
         quarantined={"implausible time": 2}),
    Case("a log of 1970 that says so", log(ts=[0, 3600]), section(
        time=time("s", earliest="1970-01-01")), columns={"event_time": [0, HOUR_MS]}),
    Case("a log of 1970", log(ts=[0, 3600]), section(),
         refusal="if they are right, set time.earliest and time.latest"),
    Case("a window of plausible times", log(ts=[START, START + 10**8, START + 1]),
         section(time=time("s", latest="2025-01-01")),
         columns={"event_time": [START * 1000, (START + 1) * 1000]},
         quarantined={"implausible time": 1}),
    Case("earliest that is no date", log(), section(time=time("s", earliest="yesterday")),
         refusal="key 'table.time.earliest': Value error, expected a date or time like 2024-01-31"),
    Case("numbers too large for a time", log(ts=[START, START, START, "1e300", 2**63]), section(),
         columns={"event_time": [START * 1000] * 3}, quarantined={UNREAD: 2}),
    Case("times that are lists", stored(ts=[[1], [2]]), parquet(), refusal="not numbers; set unit"),
    Case("times that are booleans", stored(ts=[True, False]), parquet(**ISO), refusal="not times"),
    Case("times that are all missing", stored(ts=[None, None]), parquet(),
         refusal="2 of 2 rows are bad, over quarantine_limit"),
    Case("windows of less than a minute", log(), section(), refusal="key 'window_hours'",
         data={"window_hours": 0.001}),
    Case("more windows than are asked for", log(), section(), columns={"c": ids("a")},
         said="2 rows read: 1 examples, 1 dropped (after max_windows)",
         data={"window_hours": 1, "max_windows": 1}),
]  # fmt: skip


def criteo(**changes: Any) -> dict[str, Any]:
    base = {"files": ["day_*"], "start": "2024-01-01", "rows_per_second": 1.0}
    return {**base, "table_rows": TABLE_ROWS, "chunk_rows": 2, **changes}


def criteo_row(day: int, category: str = "68fd1e64") -> str:
    return "\t".join(["0", str(day), *[""] * 12, *[category] * 26]) + "\n"


DAYS = {f"day_{day}": criteo_row(day) for day in (10, 2, 0, 11, 1)}
IN_ORDER = {"integer_1": pytest.approx([pl.Series([x]).log1p()[0] for x in (0, 1, 2, 10, 11)])}
HALF_GZIP = gzip.compress(b"".join(criteo_row(n, f"{n:08x}").encode() for n in range(999)))[:-20]
FILES = [
    Case("numbers in names", dict(DAYS), criteo(), columns=IN_ORDER, format="criteo",
         said="5 files, in this order: day_0, day_1, day_2, day_10, day_11"),
    Case("numbers in folders", {f"d{n}/log.csv": frame(c=[str(n)] * 2) for n in (10, 9, 1)},
         section(files=["d*/log.csv"]), columns={"c": ids("1", "9", "10", "1", "9", "10")},
         said="d1/log.csv, d9/log.csv, d10/log.csv"),
    Case("two stars", {"a/b/log.csv": frame(), "log.csv": frame()}, section(files=["**/*.csv"]),
         columns={"c": ids("a", "a", "b", "b")}),
    Case("a list of files", {"b.csv": frame(c=["b", "x"]), "a.csv": frame(c=["a", "x"])},
         section(files=["b.csv", "a.csv"]), columns={"c": ids("b", "a", "x", "x")}),
    Case("no files", log(), section(files=[]), refusal="key 'table.files': List should have at"),
    Case("a file that is not there", log(), section(files=["lgo.csv"]), refusal="no such file"),
    Case("a glob without a match", log(), section(files=["*.tsv"]), refusal="no such file"),
    Case("a file matched twice", log(), section(files=["log.csv", "*.csv"]),
         refusal="log.csv: matched twice by 'files'; its rows would count twice"),
    Case("a folder", {"logs/log.csv": frame()}, section(files=["logs"]),
         refusal="logs: is a folder; give its files"),
    Case("a folder of Criteo", {"day_0/part": criteo_row(1)}, criteo(), format="criteo",
         refusal="is a folder"),
    Case("folders beside files", {"day_0": criteo_row(3), "day_1/x": ""}, criteo(),
         format="criteo", columns={"integer_1": pytest.approx([1.3862944])}),
    Case("brackets in a name", {"log[1].csv": frame()}, section(files=["log[1].csv"]),
         columns={"c": ids("a", "b")}),
    Case("truncated gzip of Criteo", {"day_0.gz": HALF_GZIP}, criteo(), format="criteo",
         refusal="day_0.gz: truncated or corrupt gzip"),
    Case("gzip that is none", {"day_0.gz": criteo_row(1)}, criteo(), format="criteo",
         refusal="day_0.gz: truncated or corrupt gzip"),
    Case("damaged gzip", {"day_0.gz": HALF_GZIP[:40] + b"\0\0\0\0" + HALF_GZIP[44:]}, criteo(),
         format="criteo", refusal="day_0.gz: truncated or corrupt gzip"),
    Case("gzip of a table", {"log.csv.gz": gzip.compress(frame().write_csv().encode())},
         section(files=["log.csv.gz"]), columns={"c": ids("a", "b")}),
    Case("two gzips in one", {"log.csv.gz": gzip.compress(frame().write_csv().encode())
                              + gzip.compress(f"{START},1,z,1\n".encode())},
         section(files=["log.csv.gz"]), columns={"c": ids("a", "z", "b")}),
    Case("truncated gzip of a table", {"log.csv.gz": gzip.compress(bytes(range(256)) * 99)[:-9]},
         section(files=["log.csv.gz"]), refusal="log.csv.gz: truncated or corrupt gzip"),
    Case("a gzip bomb", {"day_0.gz": gzip.compress(b"0" * (20 << 20))}, criteo(), format="criteo",
         refusal="day_0.gz: a line is longer than 16 MiB"),
    Case("a gzip bomb of a table", {"log.csv.gz": gzip.compress(b"ts,y,c,d\n" + b"0" * (20 << 20))},
         section(files=["log.csv.gz"]), refusal="log.csv.gz: a line is longer than 16 MiB"),
    Case("an empty file", {"log.csv": ""}, section(), refusal="log.csv: cannot be read as csv"),
    Case("an empty file of Criteo", {"day_0": ""}, criteo(), format="criteo",
         refusal="no good rows"),
    Case("a header alone", {"log.csv": "ts,y,c,d\n"}, section(), refusal="no good rows"),
    Case("bytes that are no UTF-8", {"log.csv": frame().write_csv().encode() + b"1,0,\xff\xfe,1\n"},
         section(), refusal="log.csv: cannot be read as csv"),
    Case("Latin-1", {"log.csv": f"ts,y,c,d\n{START},0,Köln,1\n".encode("latin-1")}, section(),
         refusal="convert it to UTF-8"),
    Case("UTF-16", {"log.csv": frame().write_csv().encode("utf-16")}, section(),
         refusal="log.csv: "),
    Case("a byte order mark", {"log.csv": b"\xef\xbb\xbf" + frame().write_csv().encode()},
         section(), columns={"c": ids("a", "b")}),
    Case("Windows line ends", {"log.csv": frame().write_csv().replace("\n", "\r\n")}, section(),
         columns={"c": ids("a", "b"), "label": [0, 1]}),
    Case("a row of Criteo that is no UTF-8", {
        "day_0": criteo_row(1).encode() * 3 + criteo_row(1, "x").encode("utf-8").replace(
            b"x", b"\xff", 1)}, criteo(), format="criteo", columns={"label": [0] * 3},
         quarantined={"not UTF-8": 1}),
    Case("bytes for Criteo", {"day_0": bytes(range(256)) * 40}, criteo(), format="criteo",
         refusal="rows are bad, over quarantine_limit"),
    Case("text as Parquet", {"log.parquet": "no"}, parquet(),
         refusal="log.parquet: cannot be read as parquet"),
    Case("half a Parquet file", {"log.parquet": b"PAR1" + b"\0" * 50}, parquet(),
         refusal="log.parquet: cannot be read as parquet"),
    Case("Parquet as CSV", {"log.csv": b"PAR1\x00\x80\xff" * 99}, section(), refusal="log.csv: "),
    Case("a row with a field too few", {"log.csv": frame().write_csv() + f"{START},0,a\n"},
         section(), refusal="log.csv: line 4 has 3 of 4 fields"),
    Case("a last line cut short", {"log.csv": frame().write_csv() + f"{START},"}, section(),
         refusal="log.csv: line 4 has 2 of 4 fields"),
    Case("blank lines", {"log.csv": frame(4).write_csv() + "\n\n"}, section(),
         columns={"c": ids("a", "b", "c", "d")}, quarantined={UNREAD: 2}),
    Case("a separator in quotes", log(c=["a,b", "c"]), section(), columns={"c": ids("a,b", "c")}),
    Case("quotes that swallow lines", {
        "log.tsv": f'ts\ty\tc\td\n{START}\t0\t"a\t1\n{START}\t1\tb\t1\n{START}\t1\tc"\t1\n'},
         section(files=["log.tsv"], file_format="tsv"),
         refusal="log.tsv: 3 lines are 1 rows, since quotes span lines; set quotes: no"),
    Case("quotes that are plain characters", {
        "log.tsv": f'ts\ty\tc\td\n{START}\t0\t"a\t1\n{START}\t1\tb\t1\n{START}\t1\tc"\t1\n'},
         section(files=["log.tsv"], file_format="tsv", quotes="no"),
         columns={"c": ids('"a', "b", 'c"')}),
    Case("fields that hold line ends", log(c=["a\nb", "c"]), section(quotes="yes"),
         columns={"c": ids("a\nb", "c")}),
    Case("a row with a field too many", {"log.csv": frame().write_csv() + f"{START},0,a,1,9\n"},
         section(), refusal="log.csv: cannot be read as csv"),
    Case("a column twice in the header", {"log.csv": f"ts,y,c,c,d\n{START},0,a,b,1\n"}, section(),
         refusal="log.csv: its header contains the column 'c' twice"),
    Case("a column that is not there", log(), section(dense=["dd"]),
         refusal="log.csv: no column 'dd'; did you mean 'd'?"),
    Case("columns in another order", {
        "1.csv": frame(), "2.csv": frame().select("d", "c", "y", "ts")},
         section(files=["*.csv"]), columns={"c": ids("a", "a", "b", "b")}),
    Case("a column that a file lacks", {"1.csv": frame(), "2.csv": frame().drop("d")},
         section(files=["*.csv"]), columns={"d": [0, None, pytest.approx(0.6931472), None]}),
    Case("integers of two widths, and floats", {
        "1.parquet": frame(d=pl.Series([1, 2], dtype=pl.Int8)),
        "2.parquet": frame(d=pl.Series([1, 2], dtype=pl.Int64)),
        "3.parquet": frame(d=pl.Series([1.0, 2.0], dtype=pl.Float32))},
         parquet(files=["*.parquet"]), columns={"c": ids(*"aaabbb")}),
    Case("categories as integers and floats", {
        "1.parquet": frame(c=[1, 2]), "2.parquet": frame(c=[1.0, 2.0])},
         parquet(files=["*.parquet"]), columns={"c": ids("1", "1", "2", "2")}),
    Case("a first file all null", {
        "1.parquet": frame(c=pl.Series([None, None])), "2.parquet": frame()},
         parquet(files=["*.parquet"]), columns={"c": ids(None, "a", None, "b")}),
    Case("a first file all null of another type", {
        "1.parquet": frame(c=pl.Series([None, None], dtype=pl.Int32)), "2.parquet": frame()},
         parquet(files=["*.parquet"]), columns={"c": ids(None, "a", None, "b")}),
    Case("types that do not go together", {"1.parquet": frame(c=[1, 2]), "2.parquet": frame()},
         parquet(files=["*.parquet"]),
         refusal="2.parquet: column 'c' holds String, but Int64 in "),
    Case("dates and datetimes", {
        "1.parquet": frame(ts=[date(2024, 1, 1)] * 2),
        "2.parquet": frame(ts=[datetime(2024, 1, 2)] * 2)},
         parquet(files=["*.parquet"], **ISO),
         columns={"event_time": at("2024-01-01") * 2 + at("2024-01-02") * 2}),
]  # fmt: skip


def numbered(name: str) -> Case:
    """A dense feature with the name of a column of the project's own."""
    taken = name in {"example_id", "event_time", "label_time", "domain", "group", "weight",
                     "staleness_ms", "label", "score", "logit", "probability", ""}  # fmt: skip
    column = f"feature:{name}" if taken else name
    if "." in name or "/" in name:
        column = {"a.b": "feature:a%2Eb", ".": "feature:%2E", "a.b/c": "feature:a%2Eb%2Fc"}[name]
    if name == "feature:x":
        column = "feature:feature%3Ax"
    return Case(f"a feature called {name!r}", stored(**{name: [3, 7]}), parquet(dense=[name]),
                columns={column: pytest.approx([1.3862944, 2.0794415])})  # fmt: skip


OWN = ["example_id", "event_time", "label_time", "domain", "group", "label", "weight", "score",
       "logit", "staleness_ms", "probability", "row", "reason", "content", "window_start", "bin",
       "total", "first", "known", "before", "hour", "len", "domain_index", "value", "file",
       "", ".", "a.b", "a.b/c", " ", "a b", "Ä", "feature:x", "items", "time_"]  # fmt: skip
COUNTER = {"bin_minutes": 60, "hours": [1]}
NAMES = [
    *(numbered(name) for name in OWN),
    Case("a category called domain", stored(domain=["a", "b"]),
         parquet(categorical=category("domain")), columns={"feature:domain": ids("a", "b"),
                                                           "domain": [0, 0]}),
    Case("domain of the column domain, which is a feature too", stored(domain=["x", "y"]),
         parquet(categorical=category("domain"),
                 domain={"column": "domain", "values": {"x": "one", "y": "two"}}),
         columns={"feature:domain": ids("x", "y"), "domain": [0, 1]}),
    Case("label, time and group of columns of these names", {
        "log.parquet": frame().rename({"ts": "event_time", "y": "label", "c": "group"})},
         parquet(time={"column": "event_time", "unit": "s"}, label="label", group="group",
                 categorical=category("group")),
         columns={"label": [0, 1], "feature:group": ids("a", "b")}),
    Case("event_hour of the log", stored(event_hour=[77, 78]),
         parquet(categorical=category("event_hour")), columns={"event_hour": ids("77", "78")}),
    Case("event_hour that is derived", stored(), parquet(categorical=category("event_hour")),
         columns={"event_hour": ids("0", "1")}),
    Case("shown_count of the log", stored(s=[[1], [1, 2]], k=[[1], [2]], shown_count=[9, 9]),
         parquet(label=None, explode={"shown": "s", "clicked": "k", "item": "i"},
                 dense=["shown_count"], categorical=category("i")),
         columns={"shown_count": pytest.approx([2.3025851] * 3)}),
    Case("an item with the name of another column", stored(s=[[1], [2]], k=[[1], []]),
         parquet(label=None, explode={"shown": "s", "clicked": "k", "item": "c"}),
         refusal="the log has a column 'c' of its own; give the item another name"),
    Case("one column as two categories", stored(), parquet(categorical=category("c") * 2),
         refusal="feature 'c' is listed twice (in categorical and categorical)"),
    Case("one column dense twice", stored(), parquet(dense=["d", "d"]),
         refusal="feature 'd' is listed twice (in dense and dense)"),
    Case("one column dense and categorical", stored(), parquet(categorical=category("d")),
         refusal="feature 'd' is listed twice (in dense and categorical)"),
    Case("one column dense and, under another name, categorical", stored(),
         parquet(categorical=category("d", name="d_id")), columns={
             "d": pytest.approx([0, 0.6931472]), "d_id": ids("0", "1")}),
    Case("a counter with the name of a feature", stored(c_age=[1, 2]),
         parquet(dense=["c_age"], counters=[{"by": ["c"], **COUNTER}]),
         refusal="feature 'c_age' is listed twice (in dense and counters)"),
    Case("two counters of the same columns", stored(),
         parquet(counters=[{"by": ["c"], **COUNTER}, {"by": ["c"], **COUNTER}]),
         refusal="is listed twice (in counters and counters)"),
    Case("two counters of the same columns with names", stored(),
         parquet(counters=[{"by": ["c"], **COUNTER}, {"by": ["c"], "name": "k", **COUNTER}]),
         columns={"k_age": [0, 0], "c_age": [0, 0]}),
    Case("counters by columns of our names", stored(bin=["a", "a"], label=["x", "x"]),
         parquet(counters=[{"by": ["bin", "label"], **COUNTER}]),
         columns={"bin_label_age": pytest.approx([0, 0.6931472])}),
    Case("a counter by nothing", stored(), parquet(counters=[{"by": [], **COUNTER}]),
         refusal="key 'table.counters.0.by'"),
    Case("a column of the namespace", stored(**{"own:row": [1, 2]}), parquet(dense=["own:row"]),
         refusal="names that start with 'own:' are taken"),
    Case("a history called label", stored(), parquet(
        history={"name": "label", "user": "c", "item": "c", "length": 3, "table_rows": 50}),
         columns={"feature:label": [[], []]}),
]  # fmt: skip

WORDS = ["", " ", "NA", "NaN", "nan", "NULL", "null", "\\N", "None", "-"]
MISSING = '"c"\n' + "\n".join(f'"{word}"' for word in [*WORDS, "a"])


def only_c(text: str) -> dict[str, Content]:
    """A CSV whose column c is given as it is written."""
    lines = text.splitlines()
    rows = [f"{START + row},{row % 2},1,{line}" for row, line in enumerate(lines[1:])]
    return {"log.csv": "\n".join([f"ts,y,d,{lines[0]}", *rows]) + "\n"}


LISTS = [[1, 2], [], None]
CATEGORIES = [
    Case("1, 1.0 and '1' in text", log(c=["1", "1.0", "1.00", "-0.0", "0"]), section(),
         columns={"c": ids("1", "1", "1", "0", "0")}),
    Case("floats that are whole", stored(c=[1.0, 2.5]), parquet(), columns={"c": ids("1", "2.5")}),
    Case("floats too large for an integer", stored(c=[1e30, 1.0]), parquet(),
         columns={"c": ids("1e+30", "1")}),
    Case("version numbers stay apart", log(c=["1.10", "1.1", "01"]), section(),
         columns={"c": ids("1.10", "1.1", "01")}),
    Case("NaN and null", stored(c=[1.0, float("nan"), 1.0, None]), parquet(),
         columns={"c": ids("1", None, "1", None)}),
    Case("words for missing", only_c(MISSING), section(),
         columns={"c": [*[0] * len(WORDS), *ids("a")]}),
    Case("a country called NA", log(c=["NA", "DE"]), section(null_values=[]),
         columns={"c": hash_to_rows(pl.Series(["NA", "DE"]), TABLE_ROWS, ()).to_list()}),
    Case("a word of one's own for missing", log(c=["?", "a"]), section(null_values=["?"]),
         columns={"c": ids(None, "a")}),
    Case("booleans and their texts", {
        "1.parquet": frame(c=[True, False])}, parquet(files=["1.parquet"]),
         columns={"c": ids("True", "FALSE")}),
    Case("texts of booleans", log(c=["True", "true", "TRUE"]), section(),
         columns={"c": ids(*["true"] * 3)}),
    Case("dictionary-encoded text", stored(c=pl.Series(["a", "b"], dtype=pl.Categorical)),
         parquet(), columns={"c": ids("a", "b")}),
    Case("bytes that are text, and some that are none", stored(c=[b"a", b"\xff"]), parquet(),
         columns={"c": ids("a", "ff")}),
    Case("decimals", stored(c=pl.Series(["1.00", "2.50"]).cast(pl.Decimal(10, 2))), parquet(),
         columns={"c": ids("1", "2.50")}),
    Case("dates", stored(c=[date(2024, 1, 1)] * 2), parquet(),
         columns={"c": ids(*["2024-01-01"] * 2)}),
    Case("a column that is all null", stored(c=[None, None]), parquet(), columns={"c": [0, 0]}),
    Case("structs", stored(c=[{"a": 1}, {"a": 2}]), parquet(), refusal="which is not a category"),
    Case("unsigned 64 bit", stored(c=pl.Series([2**64 - 1, 1], dtype=pl.UInt64)), parquet(),
         columns={"c": ids(str(2**64 - 1), "1")}),
    Case("groups of unsigned 64 bit", stored(c=pl.Series([2**64 - 1, 1], dtype=pl.UInt64)),
         parquet(group="c"), columns={"group": [-1, 1]}),
    Case("lists as one id", stored(c=LISTS), parquet(), refusal="holds lists; set kind: list"),
    Case("lists", stored(c=LISTS), parquet(categorical=category("c", kind="list")),
         columns={"c": [ids("1", "2"), [], []]}),
    Case("lists of floats with NaN", stored(c=[[1.0, float("nan")], [2.0]]),
         parquet(categorical=category("c", kind="list")),
         columns={"c": [ids("1", None), ids("2")]}),
    Case("text as a list", log(), section(categorical=category("c", kind="list")),
         refusal="holds String, not lists; if it is text, set separator"),
    Case("lists as text", log(c=["x y", "[y,z]"]), section(
        categorical=category("c", kind="list", separator=" ")),
         columns={"c": [ids("x", "y"), ids("y,z")]}),
    Case("lists that are all null", stored(c=[None, None]),
         parquet(categorical=category("c", kind="list")), columns={"c": [[], []]}),
    Case("24 hours in 24 rows", log(c=[f"h{n}" for n in range(24)], y=[0] * 24, d=[0] * 24,
                                    ts=[START] * 24),
         section(categorical=[{"column": "c", "table_rows": 24}]),
         said="column 'c': 24 values in 24 table_rows have"),
    Case("table_rows auto", log(), section(categorical=category("c", table_rows="auto")),
         columns={"c": hash_to_rows(pl.Series(["a", "b"]), 42).to_list()}),
    Case("a table of one row", log(), section(categorical=category("c", table_rows=1)),
         refusal="key 'table.categorical.0.table_rows'"),
    Case("table_rows of another word", log(), section(categorical=category("c", table_rows="many")),
         refusal="key 'table.categorical.0.table_rows'"),
]  # fmt: skip

OUTSIDE = "label outside {0, 1}"


def label(values: list[Any], **more: Any) -> dict[str, Any]:
    return {"files": stored(y=values), "section": parquet(label={"column": "y", **more})}


IMPRESSIONS = {"shown": "s", "clicked": "k", "item": "i"}
EXPLODED = {"label": None, "dense": [], "categorical": category("i")}
MIND = {"shown": "s", "item": "i", "separator": " ", "label_separator": "-"}
CLICKS_ONLY = {"item": "c", "session": "s", "per_click": 1, "popularity_hours": 1, "seed": 1}
LABELS = [
    *(
        Case(f"labels {values}", **label(values), columns={"label": [0, 1]})
        for values in ([0, 1], [0.0, 1.0], [False, True], ["0", "1"], ["false", "True"],
                       ["no", "YES"], ["N", "y"], ["0.0", "1.0"], [-1, 1], ["-1", "+1"],
                       [-1.0, 1.0], [" 0 ", "1 "])
    ),
    Case("labels as text in CSV", log(y=["False", "True"]), section(), columns={"label": [0, 1]}),
    Case("-1 beside 0 is no label", **label([-1, 0, 1]), columns={"label": [0, 1]},
         quarantined={OUTSIDE: 1}),
    Case("counts of clicks", **label([0, 3], positive=1), columns={"label": [0, 1]}),
    Case("stars", **label([3, 4.5, None, 5], positive=4), columns={"label": [0, 1, 1]},
         quarantined={"label is no number": 1}),
    Case("counts without a threshold", **label([0, 3]),
         refusal="1 of 2 rows are bad, over quarantine_limit"),
    Case("a label that is missing", **label([0, None, 1, float("nan")]), columns={"label": [0, 1]},
         quarantined={OUTSIDE: 2}),
    Case("labels that are words", **label(["click", "skip"]), refusal="label outside {0, 1}"),
    Case("labels that are all missing", **label([None, None]), refusal="2 of 2 rows are bad"),
    Case("labels that are lists", **label([[1], [0]]), refusal="which is not a category"),
    Case("further labels", stored(b=["yes", None]), parquet(labels={"buy": "b"}),
         columns={"label": [0, 1], "label_buy": [1, None]}),
    Case("further labels from counts", stored(b=[0, 2]),
         parquet(labels={"buy": {"column": "b", "positive": 2}}), columns={"label_buy": [0, 1]}),
    Case("a feature with the name of a further label", stored(label_buy=[3, 7], b=[0, 1]),
         parquet(labels={"buy": "b"}, dense=["label_buy"]), columns={
             "label_buy": [0, 1], "feature:label_buy": pytest.approx([1.3862944, 2.0794415])}),
    Case("impressions without a click", stored(s=[[1, 2], [3]], k=pl.Series([[], []])),
         parquet(**EXPLODED, explode=IMPRESSIONS),
         columns={"label": [0, 0, 0], "i": ids("1", "2", "3")}),
    Case("clicks that are all null", stored(s=[[1, 2], [3]], k=[None, None]),
         parquet(**EXPLODED, explode=IMPRESSIONS), columns={"label": [0, 0, 0]}),
    Case("impressions without items", stored(s=[[1], [], None], k=[[1], [], None]),
         parquet(**EXPLODED, explode=IMPRESSIONS), columns={"label": [1]},
         said="3 rows read: 1 examples, 2 dropped (nothing shown)"),
    Case("clicks of items that were not shown", stored(s=[[1], [2]], k=[[9], [2]]),
         parquet(**EXPLODED, explode=IMPRESSIONS), columns={"label": [0, 1]},
         said="1 clicked items were not among those shown"),
    Case("shown as integers, clicked as text", stored(s=[[1, 2], [3]], k=[["2"], []]),
         parquet(**EXPLODED, explode=IMPRESSIONS), columns={"label": [0, 1, 0]}),
    Case("shown as integers, clicked as floats", stored(s=[[1, 2], [3]], k=[[2.0], []]),
         parquet(**EXPLODED, explode=IMPRESSIONS), columns={"label": [0, 1, 0]}),
    Case("lists as text without a separator", stored(s=["N1-0 N2-1", "N3-0"], k=["", ""]),
         parquet(**EXPLODED, explode=IMPRESSIONS), refusal="set explode.separator"),
    Case("lists as text in CSV", log(s=["[1 2]", "3"], k=["2", ""]),
         section(**EXPLODED, explode={**IMPRESSIONS, "separator": " "}),
         columns={"label": [0, 1, 0], "i": ids("1", "2", "3")}),
    Case("lists with commas and quotes", log(s=["['a', 'b']", "['c']"], k=["['b']", "[]"]),
         section(**EXPLODED, explode={**IMPRESSIONS, "separator": ","}),
         columns={"label": [0, 1, 0], "i": ids("a", "b", "c")}),
    Case("MIND's impressions", stored(s=["N1-0 N-2-1", "N3-0"]), parquet(**EXPLODED, explode=MIND),
         columns={"label": [0, 1, 0], "i": ids("N1", "N-2", "N3")}),
    Case("MIND's impressions without labels", stored(s=["N1-0 N2-1", "N3 N4"]),
         parquet(**EXPLODED, explode=MIND), columns={"label": [0, 1]},
         quarantined={"an element does not end in -0 or -1": 1}),
    Case("neither clicks nor a label separator", stored(s=[[1], [2]]),
         parquet(**EXPLODED, explode={"shown": "s", "item": "i"}),
         refusal="give exactly one of clicked and label_separator"),
    Case("numbers instead of lists", stored(s=[1, 2], k=[1, 2]),
         parquet(**EXPLODED, explode=IMPRESSIONS), refusal="column 's' holds Int64, not lists"),
    Case("two sources of labels", stored(s=[[1], [2]], k=[[1], []]),
         parquet(explode=IMPRESSIONS), refusal="give exactly one of label, explode"),
    Case("clicks of one hour alone", stored(s=["x", "y"], ts=[START, START]),
         parquet(label=None, sample_negatives=CLICKS_ONLY),
         refusal="no click has others in the 1 hours before its own"),
    Case("clicks without an item", stored(s=["x", "y", "z"], c=["a", None, "b"]),
         parquet(label=None, sample_negatives={**CLICKS_ONLY, "popularity_hours": 9}),
         columns={"label": [1, 0]}, quarantined={"missing c": 1}),
]  # fmt: skip

NUMBER = "unparsable number in d"
VALUES = [
    Case("numbers with blanks and signs", log(d=[" 3 ", "+3"]), section(),
         columns={"d": pytest.approx([1.3862944] * 2)}),
    Case("words for missing numbers", log(d=["NA", "\\N", "-", "", "3"]), section(),
         columns={"d": [None, None, None, None, pytest.approx(1.3862944)]}),
    Case("numbers with thousands separators", log(d=["1,000", "3", "3"]), section(),
         columns={"d": pytest.approx([1.3862944] * 2)}, quarantined={NUMBER: 1}),
    Case("infinite numbers", stored(d=[float("inf"), float("-inf")]), parquet(),
         columns={"d": [None, None]}),
    Case("numbers beyond floats", log(d=["1e400", "3"]), section(),
         columns={"d": [None, pytest.approx(1.3862944)]}),
    Case("booleans as numbers", stored(d=[True, False]), parquet(),
         columns={"d": pytest.approx([0.6931472, 0])}),
    Case("lists as numbers", stored(d=[[1], [2]]), parquet(), refusal="not numbers"),
    Case("numbers that are all null", stored(d=[None, None]), parquet(),
         columns={"d": [None, None]}),
    Case("a domain that is not listed", log(),
         section(domain={"column": "c", "values": {"a": "x"}}), refusal="1 of 2 rows are bad"),
    Case("a domain for the others", log(), section(
        domain={"column": "c", "values": {"a": "x"}, "other": "o"}), columns={"domain": [0, 1]}),
    Case("domains that are floats", stored(c=[1.0, 2.0]), parquet(
        domain={"column": "c", "values": {"1": "x", "2": "y"}}), columns={"domain": [0, 1]}),
    Case("a domain called NA", log(c=["NA", "b"]), section(
        domain={"column": "c", "values": {"NA": "x", "b": "y"}}), columns={"domain": [0, 1]}),
    Case("unsorted rows", log(ts=[START + 9, START]), section(), columns={"c": ids("b", "a")}),
    Case("rows of one time keep their order", log(ts=[START] * 3, c=["z", "a", "m"]), section(),
         columns={"c": ids("z", "a", "m")}),
    Case("bad rows are counted aloud", log(y=[0, 1, 7, 9]), section(), columns={"label": [0, 1]},
         quarantined={OUTSIDE: 2},
         said="2 of 4 rows are quarantined, see quarantine.csv: 2 label outside {0, 1}"),
    Case("rows in are rows out", log(y=[0, 1, 7]), section(), columns={"label": [0, 1]},
         quarantined={OUTSIDE: 1}, said="3 rows read: 2 examples, 1 quarantined"),
    Case("no categorical feature", log(), section(categorical=[]),
         refusal="categorical: give at least one column"),
    Case("a label's key that is wrong", log(), section(label={"colum": "y"}),
         refusal="unknown key 'table.label.colum'; did you mean 'column'?"),
    Case("a key of another name", log(), section(lable="y"),
         refusal="unknown key 'table.lable'; did you mean 'label'?"),
]  # fmt: skip

NEXT_DAY = START + 86_400
FORMATS = [
    Case("JSON lines", {"log.jsonl": frame().write_ndjson()},
         section(files=["log.jsonl"], file_format="jsonl"), columns={"c": ids("a", "b")}),
    Case("JSON lines in gzip", {"log.jsonl.gz": gzip.compress(frame().write_ndjson().encode())},
         section(files=["log.jsonl.gz"], file_format="jsonl"), columns={"c": ids("a", "b")}),
    Case("JSON lines with lists and a late float", {
        "log.jsonl": f'{{"ts": {START}, "y": 0, "c": ["x"], "d": null}}\n'
                     f'{{"ts": {START}, "y": 1, "c": [], "d": 1.5}}\n'},
         section(files=["log.jsonl"], file_format="jsonl", categorical=category("c", kind="list")),
         columns={"c": [ids("x"), []], "d": [None, pytest.approx(0.9162907)]}),
    Case("JSON that is no JSON", {"log.jsonl": "{ts: 1}\n"},
         section(files=["log.jsonl"], file_format="jsonl"), refusal="log.jsonl: cannot be read as"),
    Case("Arrow", {"log.arrow": frame()}, section(files=["log.arrow"], file_format="arrow"),
         columns={"c": ids("a", "b")}),
    Case("Arrow that is none", {"log.arrow": "no"},
         section(files=["log.arrow"], file_format="arrow"), refusal="log.arrow: cannot be read as"),
    Case("zstd", {"log.csv.zst": zstd(frame().write_csv())}, section(files=["log.csv.zst"]),
         columns={"c": ids("a", "b")}),
    Case("truncated zstd", {"log.csv.zst": zstd(frame().write_csv())[:-5]},
         section(files=["log.csv.zst"]), refusal="log.csv.zst: truncated or corrupt zstd"),
    Case("zstd of Criteo", {"day_0": zstd(criteo_row(1))}, criteo(), format="criteo",
         columns={"label": [0]}),
    Case("gzip without the name", {"log.csv": gzip.compress(frame().write_csv().encode())},
         section(), columns={"c": ids("a", "b")}),
    Case("a filter", log(d=[1, 5, 9]), section(filter="CAST(d AS DOUBLE) > 2 AND c IN ('b', 'c')"),
         columns={"c": ids("b", "c")}, said="3 rows read: 2 examples, 1 dropped (filter)"),
    Case("a filter of text as a number", log(), section(filter="d > 0"),
         refusal="columns of CSV are text: CAST(x AS DOUBLE)"),
    Case("a filter that is a number", stored(), parquet(filter="d + 1"),
         refusal="table.filter: 'd + 1' gives Float64, neither true nor false"),
    Case("a filter of a column that is not there", stored(), parquet(filter="price > 1"),
         refusal="table.filter: 'price > 1': "),
    Case("a filter that leaves nothing", stored(), parquet(filter="d > 99"),
         refusal="no good rows; 2 rows read: 0 examples, 2 dropped (filter)"),
    Case("a filter and bad rows", stored(d=[1, 2, 3, 4], y=[0, 1, 7, 0]), parquet(filter="d > 1"),
         columns={"label": [1, 0]}, quarantined={OUTSIDE: 1},
         said="4 rows read: 2 examples, 1 quarantined, 1 dropped (filter)"),
    Case("a derived column", stored(), parquet(
        columns={"pair": "CONCAT(c, '_', y)", "twice": "d * 2", "more": "twice + 1"},
        dense=["more"], categorical=category("pair")),
         columns={"pair": ids("a_0", "b_1"), "more": pytest.approx([0.6931472, 1.3862944])}),
    Case("a derived column with the name of the log's", stored(), parquet(columns={"d": "d * 2"}),
         refusal="the log has a column 'd' of its own"),
    Case("a mean of the whole log", stored(), parquet(columns={"m": "d - AVG(d)"}),
         refusal="table.columns.m: 'd - AVG(d)' needs more than its own row"),
    Case("a count of the whole log", stored(), parquet(columns={"m": "COUNT(*)"}),
         refusal="needs more than its own row"),
    Case("a sum over a column", stored(), parquet(columns={"m": "SUM(d) OVER (PARTITION BY c)"}),
         refusal="needs more than its own row"),
    Case("a column that is called like an SQL word", stored(user=["x", "y"]), parquet(
        columns={"m": "CONCAT(user, c)"}),
         refusal="""for the column of that name write "user", with its quotes"""),
    Case("a column that is called like an SQL word, in quotes", stored(user=["x", "y"]), parquet(
        columns={"m": 'CONCAT("user", c)'}, categorical=category("m")),
         columns={"m": ids("xa", "yb")}),
    Case("an expression that is none", stored(), parquet(columns={"m": "d +"}),
         refusal="table.columns.m: 'd +': "),
    Case("a label time per row", stored(t=[None, NEXT_DAY]),
         parquet(time=time("s", label_delay_s=60), label_time={"column": "t", "unit": "s"}),
         columns={"label_time": [START * 1000 + 60_000, NEXT_DAY * 1000]}),
    Case("a label time as text", log(t=["", "2024-01-02T00:00:00Z"]),
         section(label_time={"column": "t", "unit": "datetime"}),
         columns={"label_time": [START * 1000, NEXT_DAY * 1000]}),
    Case("a label time before the event", stored(t=[None, START - 9, None]),
         parquet(label_time={"column": "t", "unit": "s"}), columns={"label": [0, 0]},
         quarantined={"label known before its event": 1}),
    Case("a label time that cannot be read", log(t=["soon", "2024-02-01", "2024-02-01"]),
         section(label_time={"column": "t", "unit": "datetime"}), columns={"label": [1, 0]},
         quarantined={f"label: {UNREAD}": 1}),
    Case("a label time that is missing everywhere", stored(t=[None, None]),
         parquet(label_time={"column": "t", "unit": "s"}),
         columns={"label_time": [START * 1000, START * 1000 + HOUR_MS]}),
]  # fmt: skip

PATHS = [
    Case("no line of names", {"log.csv": f"{START},1,a,2\n"},
         section(header=["ts", "y", "c", "d"]), columns={"label": [1], "c": ids("a")}),
    Case("no line of names, and a blank last line", {"log.csv": f"{START},1,a,2\n\n"},
         section(header=["ts", "y", "c", "d"]), columns={"label": [1], "c": ids("a")},
         quarantined={UNREAD: 1}),
    Case("fewer names than fields", {"log.csv": f"{START},1,a,2\n"},
         section(header=["ts", "y", "c"], dense=[]),
         refusal="its first line has 4 fields, but header names 3"),
    Case("one name twice in header", log(), section(header=["ts", "y", "c", "c"]),
         refusal="two columns have the same name"),
    Case("header for Parquet", stored(), parquet(header=["ts", "y", "c", "d"]),
         refusal="header is for csv and tsv"),
    Case("a line of names is read as a row where header is given", log(),
         section(header=["ts", "y", "c", "d"]), columns={"label": [0, 1]},
         quarantined={UNREAD: 1}),
    Case("folders of one key with other values", {
        "k=a/log.csv": frame(1), "k=b/log.csv": frame(1)},
         section(files=["*/log.csv"], categorical=category("k")), columns={"k": ids("a", "b")}),
    Case("a folder's key beside the files' own numbers", {
        "c=1/log.parquet": frame(1).drop("c"), "c=2/log.parquet": frame(1, c=[3])},
         parquet(files=["*/log.parquet"]), refusal="give both one type"),
    Case("a key that only some folders have", {"k=a/log.csv": frame(1), "b/log.csv": frame(1)},
         section(files=["k=a/log.csv", "b/log.csv"], categorical=category("k")),
         columns={"k": ids("a", None)}),
    Case("a key that no folder has", log(), section(categorical=category("hour")),
         refusal="no column 'hour'"),
    Case("folders that are no keys", {"=a/b=/log.csv": frame(1)},
         section(files=["*/*/log.csv"], categorical=category("b")), columns={"b": [0]}),
    Case("a broken regular expression", log(), section(file_columns={"k": "(a"}),
         refusal="not a regular expression"),
    Case("a URL of an unknown kind", log(), section(files=["nowhere://bucket/log.csv"]),
         refusal="nowhere://bucket/log.csv: "),
    Case("a URL of nothing", log(), section(files=["memory://bucket/none.csv"]),
         refusal="memory://bucket/none.csv: no such file"),
    Case("row order and times", log(), section(row_clock={"rows_per_window": 1}),
         refusal="exactly one of time"),
    Case("neither row order nor times", log(), section(time=None), refusal="exactly one of time"),
    Case("hours of row order", log(), section(
        time=None, row_clock={"rows_per_window": 1}, categorical=category("event_hour")),
         refusal="no column 'event_hour'"),
    Case("a window of no rows", log(), section(time=None, row_clock={"rows_per_window": 0}),
         refusal="row_clock.rows_per_window"),
    Case("a negative rate above 1", log(), section(negative_rate=2), refusal="negative_rate"),
    Case("a negative rate of 0", log(), section(negative_rate=0), refusal="negative_rate"),
    Case("an attribution window without times of labels", log(),
         section(attribution_window_s=60), refusal="attribution_window_s needs label and label"),
    Case("a base rate that doubles, past a bound", log(
        ts=[START + 86_400 * (row >= 400) + row for row in range(800)],
        y=[int(row % 10 == 0 or row >= 600) for row in range(800)],
        c=["a"] * 800, d=[1.0] * 800), section(), data={"drift": {"base_rate": 2.0}},
         refusal="window 2024-01-02T00-00: base rate"),
]  # fmt: skip

ALL = [*FORMATS, *TIMES, *FILES, *NAMES, *CATEGORIES, *LABELS, *VALUES, *PATHS]


def write(folder: Path, files: dict[str, Content]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pl.DataFrame):
            writers: dict[str, Callable[[Path], Any]] = {
                ".parquet": content.write_parquet,
                ".csv": content.write_csv,
                ".arrow": content.write_ipc,
            }
            writers[path.suffix](path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
