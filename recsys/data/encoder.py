"""From raw rows to model inputs: one artifact that ingest writes, and training and serving use."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.collisions import TableUse
from recsys.data.encoder_format import (
    CROSSED,
    DAYS_PER_WEEK,
    DOMAIN_COLUMN,
    EVENT_HOUR,
    EVENT_WEEKDAY,
    FIRST_WEEKDAY,
    HOURS_PER_DAY,
    DomainEncoding,
    EncoderFormat,
    IdEncoding,
    RawColumn,
    Type,
    format_of_ids,
)
from recsys.data.encoding import (
    canonical_text,
    category_text,
    hash_to_rows,
    key_hashes,
    signed_log1p,
    text_of,
    to_rows,
)
from recsys.data.names import EVENT_TIME, NUMBER
from recsys.data.schema import CategoricalFeature
from recsys.data.sources.expressions import with_expressions
from recsys.data.sources.times import TimesSeen, event_times
from recsys.units import MS_PER_HOUR

EXAMPLES_PER_DOMAIN = 3
TYPES: dict[str, pl.DataType] = {
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "text": pl.String(),
    "time": pl.Datetime("us"),
}


class Encoder(EncoderFormat):
    """The encoder of data frames, with which ingest writes parts. A test keeps serving's encoder of
    single rows (recsys/serving/raw_encoder.py) equal to it.

    Example::

        >>> from recsys.data.encoder_format import DenseEncoding, IdEncoding, RawColumn
        >>> encoder = Encoder(
        ...     columns=[RawColumn("price", "number"), RawColumn("ad", "integer")],
        ...     dense=[DenseEncoding("price", "price")],  # signed log1p
        ...     ids=[IdEncoding("ad", ["ad"], table_rows=100)],  # hashed; row 0: missing
        ... )
        >>> rows = pl.DataFrame({"ad": [12, None], "price": [0.0, None], "other": ["x", "y"]})
        >>> encoder.encode(rows)["price", "ad"].rows()
        [(0.0, 50), (None, 0)]
    """

    def encode(self, rows: pl.DataFrame, window: str | None = None) -> pl.DataFrame:
        """The features of raw ``rows`` as ingest writes them: dense features as float32, ids as
        int64 or lists of int64.

        Args:
            rows: raw rows with :attr:`columns`; other columns are ignored.
            window: encode with what was known when this window began; None: with what is known
                after the last one.

        Raises:
            InputError: a column is missing or has another type than in the log.
        """
        return self.features(self.prepared(rows), window)

    def prepared(self, rows: pl.DataFrame) -> pl.DataFrame:
        """``rows`` with derived columns, one text per value and missing values as null."""
        self.check_columns(rows.columns)
        frame = pl.DataFrame([self._given(rows, column) for column in self.columns])
        frame = with_expressions(frame, dict(self.derived), None, "encoder")
        frame = frame.with_columns(cleaned(frame, self.null_values, self.stripped))
        return self._counted(self._with_clock(frame), rows.columns)

    def _with_clock(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.time is None:
            return frame
        time, wrong = event_times(frame[self.time.column], self.time, TimesSeen())
        if wrong.count():
            raise InputError(f"column {self.time.column!r}: {wrong.drop_nulls()[0]}")
        return frame.with_columns(time.alias(EVENT_TIME)).with_columns(clock(self.clock))

    def _counted(self, frame: pl.DataFrame, given: Sequence[str]) -> pl.DataFrame:
        """``frame`` with the counters' features where the columns ``given`` lack them."""
        have = {*given, *self.clock, *dict(self.derived)}
        for one in self.counters:
            lacking = {name for name in one.names if frame[name].null_count()}
            missing = one.missing(have - lacking)
            if missing:
                found = one.of(key_hashes(frame, one.columns, self.null_values))
                values = {name: pl.Series(found[:, one.names.index(name)]) for name in missing}
                frame = frame.with_columns(
                    pl.col(name).cast(pl.Float64).fill_null(value.cast(pl.Float64))
                    for name, value in values.items()
                )
        return frame

    def _given(self, rows: pl.DataFrame, column: RawColumn) -> pl.Series:
        """The raw ``column`` with the log's type."""
        name = column.name
        if name not in rows.columns:
            return pl.Series(name, [None], dtype=_dtype(column)).new_from_index(0, rows.height)
        found = rows[name]
        if found.dtype == pl.Null:
            return found.cast(_dtype(column))
        if column.is_text and found.dtype != pl.String and not found.dtype.is_nested():
            return category_text(found)
        if column.type == "boolean" and found.dtype.is_numeric():
            return found.cast(pl.Boolean)  # how tables represent booleans with missing values
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
        """As :meth:`encode`, for a ``frame`` from :meth:`prepared`.

        Args:
            uses: counters by feature, which are given the hashed values and their rows.
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
        """Index in :attr:`domains` of each raw row, int32; None if the rows do not name a domain.

        A row names its domain by the raw value or the domain's name, in the log's column or one
        called ``domain``.

        Raises:
            InputError: a value is not a domain.
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
                f"column {name!r} holds {wrong[0]!r}, which is not a domain; domains: "
                f"{', '.join(self.domains)} (in the log: {', '.join(self.domain.values)})"
            )
        return index


def _dtype(column: RawColumn) -> pl.DataType:
    """The type assumed for a column without any value."""
    dtype = TYPES["text" if column.is_text else column.type]
    return pl.List(dtype) if column.is_list else dtype


def encoder_of_ids(
    dense: Sequence[str],
    categorical: Sequence[CategoricalFeature],
    domains: Sequence[str],
    given: bool = False,
) -> Encoder:
    """The :class:`Encoder` of :func:`recsys.data.encoder_format.format_of_ids`."""
    return Encoder(**vars(format_of_ids(dense, categorical, domains, given)))


def plain_rows(frame: pl.DataFrame, columns: Sequence[RawColumn]) -> list[dict[str, Any]]:
    """Raw rows for JSON, with each value in its column's type."""
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
        with suppress(ValueError):  # a later row's text may not be a number
            value = readings.get(kind or "text", str)(value)
    if isinstance(value, Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cleaned(
    frame: pl.DataFrame, null_values: Sequence[str], stripped: Sequence[str]
) -> Iterator[pl.Series]:
    """The text columns with null for missing values and one spelling per value; those in
    ``stripped`` only lose surrounding blanks."""
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
    """Expressions for event_hour and event_weekday (UTC; Monday is 0), as far as they are in
    ``names``."""
    hours = pl.col(EVENT_TIME) // MS_PER_HOUR
    found = {
        EVENT_HOUR: hours % HOURS_PER_DAY,
        EVENT_WEEKDAY: (hours // HOURS_PER_DAY + FIRST_WEEKDAY) % DAYS_PER_WEEK,
    }
    return [found[name].alias(name) for name in names]


def domain_index(column: pl.Series, settings: DomainEncoding, domains: Sequence[str]) -> pl.Series:
    """Index in ``domains`` of each raw value, int32; null where it is not a domain."""
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
    """The raw values of a categorical feature: its column, with texts split if it is a list; for
    several ``columns``, their texts joined, null where one is missing.

    Raises:
        InputError: a column contains lists although the feature is not a list, or the other way
            round.
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
        InputError: a value is not a number.
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
    """The values as float32; null where they are missing, NaN or infinite."""
    value = pl.col(name).cast(pl.Float32)
    return pl.when(value.is_finite()).then(value)


def _ids(column: pl.Series, bound: int) -> pl.Series:
    """The values as int64, each in [0, ``bound``)."""
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
    """The lists as lists of int64, with ids in [0, ``bound``); null becomes an empty list."""
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
