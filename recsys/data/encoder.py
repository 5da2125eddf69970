"""From raw rows to model inputs: one artifact, which ingest writes and training and serving use."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError, nearest_hint
from recsys.data.collisions import TableUse
from recsys.data.encoding import (
    canonical_text,
    category_text,
    hash_to_rows,
    signed_log1p,
    text_of,
    to_rows,
)
from recsys.data.names import EVENT_TIME, NUMBER
from recsys.data.schema import CategoricalFeature
from recsys.data.settings import NULL_VALUES, MomentSettings
from recsys.data.sources.expressions import with_expressions
from recsys.data.sources.times import TimesSeen, event_times
from recsys.data.vocabulary import Step, Vocabulary
from recsys.files import write_atomically
from recsys.units import MS_PER_HOUR

ENCODER_FILE = "encoder.json"
FORMAT_VERSION = 1
EXAMPLES_PER_DOMAIN = 3
DOMAIN_COLUMN = "domain"  # names a row's domain where no raw column is called so
EVENT_HOUR, EVENT_WEEKDAY = "event_hour", "event_weekday"
HOURS_PER_DAY, DAYS_PER_WEEK = 24, 7
FIRST_WEEKDAY = 3  # 1 January 1970 was a Thursday; Monday is 0
CROSSED = "\x1f"  # stands between the texts of a cross

Type = Literal["integer", "number", "boolean", "text", "time"]
TYPES: dict[str, pl.DataType] = {
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "text": pl.String(),
    "time": pl.Datetime("us"),
}


@dataclass(frozen=True)
class RawColumn:
    """A column of raw rows that the encoder reads.

    Attributes:
        type: of its values, or of those in its lists, as the log has them; of a log of text alone,
            what all values can be read as.
        is_list: it holds lists.
        is_text: the log holds it as text, so expressions see text.
        optional: it may be left out, and its values may be missing: the log lacked some, too.
        origin: ``log``: as the log has it. The others are made by ingest and given by the caller:
            ``impressions`` (the item and the number of items shown, raw), ``counters`` (log1p of
            counts, log of rates, as ingest computes them) and ``history`` (lists of ids, as ingest
            writes them).
    """

    name: str
    type: Type
    is_list: bool = False
    is_text: bool = False
    optional: bool = False
    origin: Literal["log", "impressions", "counters", "history"] = "log"

    @property
    def dtype(self) -> pl.DataType:
        """What a column without any value is taken for."""
        dtype = TYPES["text" if self.is_text else self.type]
        return pl.List(dtype) if self.is_list else dtype


@dataclass(frozen=True)
class DenseEncoding:
    """A dense feature ``name`` (its column in a part): the signed log1p of the raw ``column``, or,
    if ``given``, its values as they are."""

    name: str
    column: str
    given: bool = False


@dataclass(frozen=True)
class IdEncoding:
    """A categorical feature ``name``: rows in [0, ``table_rows``) of the values of ``columns``.

    ``way``: ``hash`` and ``vocabulary`` of canonical texts, those of several columns together;
    ``id``: the values are rows already. Lists as text are split at ``separator``.
    """

    name: str
    columns: list[str]
    table_rows: int
    way: Literal["hash", "vocabulary", "id"] = "hash"
    is_list: bool = False
    separator: str | None = None


@dataclass(frozen=True)
class DomainEncoding:
    """The raw ``column`` of domains: the name by canonical raw value; ``other`` of all others."""

    column: str
    values: dict[str, str]
    other: str | None = None


@dataclass(frozen=True)
class Encoder:
    """What makes model inputs of raw rows.

    Attributes:
        columns: raw columns that are read.
        dense: dense features in the order of the schema; standardised later, by the schema.
        ids: categorical features in the order of the schema.
        null_values: texts that are missing values, beside empty and blank ones.
        derived: columns made by SQL expressions of one row, by name, in the order of their making.
        time: the column of event times, where features of the clock are read.
        clock: which ones: event_hour (UTC), event_weekday (UTC, Monday is 0).
        stripped: text columns of numbers and times: blanks around a value do not count.
        domains: names in the order of the schema; ``domain`` says how a row's is found.
        vocabularies: by the name of their feature.
        examples: a few raw rows of each domain.

    Example::

        >>> encoder = Encoder(
        ...     columns=[RawColumn("price", "number"), RawColumn("ad", "integer")],
        ...     dense=[DenseEncoding("price", "price")],  # signed log1p
        ...     ids=[IdEncoding("ad", ["ad"], table_rows=100)],  # hashed; row 0: missing
        ... )
        >>> rows = pl.DataFrame({"ad": [12, None], "price": [0.0, None], "other": ["x", "y"]})
        >>> encoder.encode(rows)["price", "ad"].rows()
        [(0.0, 50), (None, 0)]
    """

    columns: list[RawColumn]
    dense: list[DenseEncoding]
    ids: list[IdEncoding]
    null_values: list[str] = field(default_factory=lambda: list(NULL_VALUES))
    derived: list[tuple[str, str]] = field(default_factory=list)
    time: MomentSettings | None = None
    clock: list[str] = field(default_factory=list)
    stripped: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=lambda: ["all"])
    domain: DomainEncoding | None = None
    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def encode(self, rows: pl.DataFrame, window: str | None = None) -> pl.DataFrame:
        """The features of raw ``rows`` as ingest writes them: dense ones float32, ids int64 and
        lists of int64.

        Args:
            rows: with :attr:`columns`; others are not looked at.
            window: encodes with what was known when this window began; None: after the last one.

        Raises:
            InputError: a column is missing or holds something else than the log's.
        """
        return self.features(self.prepared(rows), window)

    def check_columns(self, names: Sequence[str]) -> None:
        """Check that none is missing that has to be among ``names``.

        Raises:
            InputError: one is; the message names the nearest.
        """
        for column in self.columns:
            if not column.optional and column.name not in names:
                raise InputError(
                    f"column {column.name!r} is missing; {nearest_hint(column.name, names)}"
                )

    def prepared(self, rows: pl.DataFrame) -> pl.DataFrame:
        """``rows`` with derived columns, one text per value and missing values as null."""
        self.check_columns(rows.columns)
        frame = pl.DataFrame([self._given(rows, column) for column in self.columns])
        frame = with_expressions(frame, dict(self.derived), None, "encoder")
        frame = frame.with_columns(cleaned(frame, self.null_values, self.stripped))
        if self.time is None:
            return frame
        time, wrong = event_times(frame[self.time.column], self.time, TimesSeen())
        if wrong.count():
            raise InputError(f"column {self.time.column!r}: {wrong.drop_nulls()[0]}")
        return frame.with_columns(time.alias(EVENT_TIME)).with_columns(clock(self.clock))

    def _given(self, rows: pl.DataFrame, column: RawColumn) -> pl.Series:
        """The raw ``column`` in types of the log's."""
        name = column.name
        if name not in rows.columns:
            return pl.Series(name, [None], dtype=column.dtype).new_from_index(0, rows.height)
        found = rows[name]
        if found.dtype == pl.Null:
            return found.cast(column.dtype)
        if column.is_text and found.dtype != pl.String and not found.dtype.is_nested():
            return category_text(found)
        if column.type == "boolean" and found.dtype.is_numeric():
            return found.cast(pl.Boolean)  # what tables make of booleans with missing ones
        is_number = not column.is_text and name in [one.column for one in self.dense]
        if is_number and found.dtype == pl.String:
            raise InputError(f"column {name!r} holds {found.dtype}; expected numbers")
        return found

    def features(
        self,
        frame: pl.DataFrame,
        window: str | None = None,
        uses: Mapping[str, TableUse] | None = None,
    ) -> pl.DataFrame:
        """As :meth:`encode`, of a ``frame`` that is :meth:`prepared`.

        Args:
            uses: by feature, are told of the hashed values and their rows.
        """
        numbers = frame.with_columns(
            _number(frame, one.column).alias(f"{NUMBER}{one.column}") for one in self.dense
        )
        dense = [
            (_finite if one.given else signed_log1p)(f"{NUMBER}{one.column}").alias(one.name)
            for one in self.dense
        ]
        ids = [
            self._rows(frame, one, window, (uses or {}).get(one.name)).alias(one.name)
            for one in self.ids
        ]
        return numbers.select(*dense, *ids)

    def _rows(
        self, frame: pl.DataFrame, one: IdEncoding, window: str | None, use: TableUse | None
    ) -> pl.Series:
        if one.way == "id":
            column = frame[one.columns[0]]
            return (_id_lists if one.is_list else _ids)(column, one.table_rows)
        values = category_values(frame, one.columns, self.null_values, one.is_list, one.separator)
        if one.way == "hash":
            return hash_to_rows(values, one.table_rows, self.null_values, use)
        vocabulary = self.vocabularies[one.name]

        def rows_of(texts: pl.Series) -> NDArray[np.int64]:
            distinct = texts.unique().drop_nulls()
            rows = vocabulary.rows_of(distinct.to_list(), window)
            found = texts.replace_strict(distinct, rows, default=0, return_dtype=pl.Int64)
            return found.to_numpy()

        return to_rows(values, self.null_values, rows_of)

    def domain_of(self, rows: pl.DataFrame) -> pl.Series | None:
        """Index in :attr:`domains` of each raw row, int32; None where the rows do not say it.

        A row says its domain by the raw value or by the domain's name, in the column of the log or
        in one called ``domain``.

        Raises:
            InputError: a value is no domain.
        """
        if self.domain is None:
            return pl.Series(DOMAIN_COLUMN, [0], dtype=pl.Int32).new_from_index(0, rows.height)
        if self.domain.column in dict(self.derived):
            rows = self.prepared(rows)
        free = DOMAIN_COLUMN not in [column.name for column in self.columns]
        names = [self.domain.column, *([DOMAIN_COLUMN] if free else [])]
        name = next((name for name in names if name in rows.columns), None)
        if name is None:
            return None
        by_name = {domain: domain for domain in self.domains}
        known = DomainEncoding(name, {**by_name, **self.domain.values}, self.domain.other)
        index = domain_index(rows[name], known, self.domains)
        wrong = rows[name].filter(index.is_null())
        if len(wrong):
            raise InputError(
                f"column {name!r} holds {wrong[0]!r}, which is no domain; domains: "
                f"{', '.join(self.domains)} (in the log: {', '.join(self.domain.values)})"
            )
        return index

    @property
    def domain_column(self) -> RawColumn | None:
        """The raw column that says a row's domain; None where there is one domain only, or where an
        expression says it."""
        if self.domain is None or self.domain.column in dict(self.derived):
            return None
        name = self.domain.column
        read = next((column for column in self.columns if column.name == name), None)
        return read or RawColumn(name, "text", optional=True)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what :meth:`save` writes."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def _text(self) -> str:
        values = asdict(self) | {
            "version": FORMAT_VERSION,
            "time": None if self.time is None else self.time.model_dump(),
            "vocabularies": {
                name: [asdict(step) for step in one.steps]
                for name, one in self.vocabularies.items()
            },
        }
        return json.dumps(values, indent=1, sort_keys=True) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``encoder.json`` in ``folder``."""
        write_atomically(folder / ENCODER_FILE, self._text().encode())

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """Read ``encoder.json`` of ``folder``.

        Raises:
            InputError: there is none, or one of another version.
        """
        path = folder / ENCODER_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the ingest stage first (towerflow ingest)")
        values = json.loads(path.read_text())
        if values.pop("version") != FORMAT_VERSION:
            raise InputError(f"{path}: of another version; run the ingest stage again")
        time, domain = values["time"], values["domain"]
        return cls(
            **values
            | {
                "columns": [RawColumn(**one) for one in values["columns"]],
                "dense": [DenseEncoding(**one) for one in values["dense"]],
                "ids": [IdEncoding(**one) for one in values["ids"]],
                "derived": [(name, text) for name, text in values["derived"]],
                "time": None if time is None else MomentSettings.model_validate(time),
                "domain": None if domain is None else DomainEncoding(**domain),
                "vocabularies": {
                    name: Vocabulary([Step(**step) for step in steps])
                    for name, steps in values["vocabularies"].items()
                },
            }
        )


def encoder_of_ids(
    dense: Sequence[str],
    categorical: Sequence[CategoricalFeature],
    domains: Sequence[str],
    given: bool = False,
) -> Encoder:
    """The encoder of rows whose categories are table rows already, and whose domain is an index or
    a name in the column ``domain``.

    Args:
        given: the dense features are encoded already, too.
    """
    return Encoder(
        columns=[
            *(RawColumn(name, "number", optional=not given) for name in dense),
            *(
                RawColumn(one.name, "integer", one.kind == "list", optional=one.kind == "list")
                for one in categorical
            ),
        ],
        dense=[DenseEncoding(name, name, given) for name in dense],
        ids=[
            IdEncoding(one.name, [one.name], one.num_embeddings, "id", one.kind == "list")
            for one in categorical
        ],
        domains=list(domains),
        domain=DomainEncoding(DOMAIN_COLUMN, {str(i): name for i, name in enumerate(domains)}),
    )


def plain_rows(frame: pl.DataFrame, columns: Sequence[RawColumn]) -> list[dict[str, Any]]:
    """Raw rows for JSON, each value in the type of its column."""
    types: dict[str, Type] = {column.name: column.type for column in columns}
    return [
        {name: _plain(value, types.get(name)) for name, value in row.items()}
        for row in frame.to_dicts()
    ]


def _plain(value: Any, kind: Type | None) -> Any:
    if isinstance(value, list):
        return [_plain(one, kind) for one in value]
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        value = text_of(value)
    if isinstance(value, str):
        readings = {"integer": int, "number": float, "boolean": "true".__eq__}
        with suppress(ValueError):  # a later row's text may be none
            value = readings.get(kind or "text", str)(value)
    if isinstance(value, Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cleaned(
    frame: pl.DataFrame, null_values: Sequence[str], stripped: Sequence[str]
) -> Iterator[pl.Series]:
    """The text columns with null for a missing value, and one spelling of each value but in those
    that are only ``stripped`` of blanks."""
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.Categorical | pl.Enum):
            yield canonical_text(frame[name].cast(pl.String), null_values)
        elif dtype == pl.String and name not in stripped:
            yield canonical_text(frame[name], null_values)
        elif dtype == pl.String:
            text = pl.col(name).str.strip_chars()
            known = ~(text.is_in(list(null_values)) | (text == ""))
            yield frame.select(pl.when(known).then(text).alias(name))[name]


def clock(names: Iterable[str]) -> list[pl.Expr]:
    """Those of event_hour and event_weekday (Monday is 0) that are among ``names``, in UTC."""
    hours = pl.col(EVENT_TIME) // MS_PER_HOUR
    found = {
        EVENT_HOUR: hours % HOURS_PER_DAY,
        EVENT_WEEKDAY: (hours // HOURS_PER_DAY + FIRST_WEEKDAY) % DAYS_PER_WEEK,
    }
    return [found[name].alias(name) for name in names]


def domain_index(column: pl.Series, settings: DomainEncoding, domains: Sequence[str]) -> pl.Series:
    """Index in ``domains`` of each raw value, int32; null where it is none."""
    index = {value: domains.index(name) for value, name in settings.values.items()}
    other = domains.index(settings.other) if settings.other else None
    text = canonical_text(category_text(column), ())
    return text.replace_strict(index, default=other, return_dtype=pl.Int32)


def category_values(
    frame: pl.DataFrame,
    columns: Sequence[str],
    null_values: Sequence[str],
    is_list: bool,
    separator: str | None,
) -> pl.Series:
    """What a categorical feature of ``columns`` is made of: the column, its texts split if it is to
    be a list; of several the texts side by side, null where one of them is missing.

    Raises:
        InputError: a column holds lists and is to be no list, or the other way round.
    """
    column = frame[columns[0]]
    splits = is_list and column.dtype == pl.String and separator is not None
    for name in columns:
        holds_lists = isinstance(frame.schema[name], pl.List | pl.Array)
        if holds_lists != is_list and not splits and column.dtype != pl.Null:
            expected = "lists" if is_list else "one value per row"
            raise InputError(f"column {name!r} holds {frame.schema[name]}; expected {expected}")
    if len(columns) > 1:
        texts = [canonical_text(category_text(frame[name]), null_values) for name in columns]
        frame = pl.DataFrame([text.alias(str(place)) for place, text in enumerate(texts)])
        joined = pl.concat_str(pl.all(), separator=CROSSED, ignore_nulls=False)
        return frame.select(joined.alias(columns[0]))[columns[0]]
    if not is_list or isinstance(column.dtype, pl.List | pl.Array):
        return column
    if column.dtype == pl.Null:
        return column.cast(pl.List(pl.String))
    element = pl.element().str.strip_chars(" '\"")
    split = pl.col(column.name).str.strip_chars(" []()\t").str.split(separator or " ")
    return frame.select(split.list.eval(element.filter(element != "")))[column.name]


def _number(frame: pl.DataFrame, name: str) -> pl.Series:
    """The column as float64.

    Raises:
        InputError: a value is no number.
    """
    if NUMBER + name in frame.columns:
        return frame[NUMBER + name]
    column = frame[name]
    if column.dtype.is_nested() or column.dtype == pl.Binary or column.dtype.is_temporal():
        raise InputError(f"column {name!r} holds {column.dtype}; expected numbers")
    number = column.cast(pl.Float64, strict=False)
    wrong = column.filter(number.is_null() & column.is_not_null())
    if len(wrong):
        raise InputError(f"column {name!r} holds {wrong[0]!r}; expected numbers")
    return number


def _finite(name: str) -> pl.Expr:
    """The values, float32; null where they are missing, NaN or infinite."""
    value = pl.col(name).cast(pl.Float32)
    return pl.when(value.is_finite()).then(value)


def _ids(column: pl.Series, bound: int) -> pl.Series:
    """The values, int64, each in [0, ``bound``)."""
    if column.dtype.is_decimal():
        column = column.cast(pl.Float64)
    where = f"column {column.name!r}"
    if column.null_count() or (column.dtype.is_float() and column.is_nan().any()):
        raise InputError(f"{where} holds null; every row needs one id")
    if not column.dtype.is_numeric():
        raise InputError(f"{where} holds {column.dtype}; expected ids in [0, {bound})")
    whole = column == column.floor() if column.dtype.is_float() else True
    outside = column.filter(~(whole & (column >= 0) & (column < bound)))
    if len(outside):
        raise InputError(f"{where}: ids must be in [0, {bound}), got {outside[0]}")
    return column.cast(pl.Int64)


def _id_lists(column: pl.Series, bound: int) -> pl.Series:
    """The lists as lists of int64, each in [0, ``bound``); null is an empty one."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if not isinstance(column.dtype, pl.List):
        raise InputError(f"column {column.name!r} holds {column.dtype}; expected lists")
    filled = column.filter(column.list.len() > 0)
    if len(filled):
        _ids(filled.explode(), bound)
    frame = column.cast(pl.List(pl.Int64)).to_frame()
    return frame.select(pl.col(column.name).fill_null(pl.lit([], dtype=pl.List(pl.Int64))))[
        column.name
    ]
