"""Turn raw rows into model inputs according to ``encoder.json``, with numpy only: the same as
ingest's encoder, in microseconds per row."""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.encoder_format import (
    CROSSED,
    DAYS_PER_WEEK,
    DOMAIN_COLUMN,
    EVENT_HOUR,
    EVENT_WEEKDAY,
    FIRST_WEEKDAY,
    HOURS_PER_DAY,
    EncoderFormat,
    IdEncoding,
    RawColumn,
)
from recsys.serving.raw_values import BLANK, canonical, milliseconds_of, number_of, row_of, text_of
from recsys.units import MS_PER_HOUR

REMEMBERED = 32_768  # values per feature whose table rows are cached; a few MB each
Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | Any
Columns = Mapping[str, Sequence[Any]]
DOMAIN = "own:domain"  # the name under which indices of domains are cached


@dataclass(frozen=True)
class Encoded:
    """N encoded rows.

    Attributes:
        dense: [N, D] float32, not standardised; NaN is missing.
        ids: [N] int64 by feature with one id.
        lists: by list feature, its concatenated table rows, and their number per example [N].
    """

    dense: NDArray[np.float32]
    ids: dict[str, NDArray[np.int64]]
    lists: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]


def columns_of(rows: Rows, encoder: EncoderFormat) -> tuple[Columns, int]:
    """The columns of the rows that ``encoder`` reads, and the number of rows.

    Args:
        rows: a list of dicts, a dict of lists, or a pandas or polars frame.

    Raises:
        InputError: a column is missing, appears twice, or is longer than another.
    """
    wanted = encoder.read_names
    if isinstance(rows, Mapping):
        names, found = list(rows), {name: list(rows[name]) for name in wanted if name in rows}
        lengths = sorted({len(values) for values in rows.values()})
        if len(lengths) > 1:
            raise InputError(f"columns differ in length: {', '.join(map(str, lengths))}")
        count = lengths[0] if lengths else 0
    elif hasattr(rows, "columns"):
        frame: Any = rows
        names, found, count = list(frame.columns), _of_frame(frame, wanted), len(frame)
    else:
        if len(rows) == 0:
            return {name: [] for name in wanted}, 0
        names, count, found = list(rows[0]), len(rows), columns_of_rows(rows, wanted, encoder)
    given = [*found, *(name for name in names if isinstance(name, str))]
    encoder.check_columns(list(dict.fromkeys(given)))
    return found, count


def columns_of_rows(
    rows: Sequence[Mapping[str, Any]], wanted: Iterable[str], encoder: EncoderFormat
) -> dict[str, Sequence[Any]]:
    """The ``wanted`` columns that any row has, with None in rows that lack an optional one.

    Raises:
        InputError: a row lacks a column that others have and that is not optional.
    """
    first = rows[0]
    here = [name for name in wanted if name in first]
    if len(here) > 1:
        try:  # all rows at once, in the interpreter's own loops
            values = zip(*map(itemgetter(*here), rows), strict=True)
            found: dict[str, Sequence[Any]] = dict(zip(here, values, strict=True))
        except KeyError:
            pass
        else:
            later = [name for name in wanted if name not in first]
            if not any(name in row for name in later for row in rows):
                return found
    found = {}
    optional = {column.name for column in encoder.columns if column.optional}
    for name in wanted:
        values = [row.get(name, ...) for row in rows]
        lacking = values.count(...)
        if lacking == len(rows):
            continue
        if lacking and name not in optional:
            place = values.index(...)
            raise InputError(f"row {place}: column {name!r} is missing; other rows have it")
        found[name] = [None if one is ... else one for one in values] if lacking else values
    return found


def _of_frame(frame: Any, wanted: Iterable[str]) -> dict[str, list[Any]]:
    names = list(frame.columns)
    found: dict[str, list[Any]] = {}
    for name in wanted:
        count = names.count(name)
        if count > 1:
            raise InputError(f"column {name!r} appears twice")
        if count == 0:
            continue
        column = frame[name]
        if hasattr(column, "isna"):  # pandas: NaN, NA and NaT are missing
            column = column.astype(object).where(column.notna().to_numpy(), None)
        found[name] = column.to_list()
    return found


class RawEncoder:
    """Encodes raw rows like the encoder that ingest wrote, in its state after the last window.

    Raises:
        InputError: it has expressions or a time format, which need polars, and polars is not
            installed.
    """

    def __init__(self, encoder: EncoderFormat) -> None:
        self.format = encoder
        self._null_values = frozenset(encoder.null_values)
        self._columns = {column.name: column for column in encoder.columns}
        self._dense_columns = {one.column for one in encoder.dense}
        self._stripped = frozenset(encoder.stripped)
        # Columns whose values can be encoded independently of their neighbours
        self._plain_numbers = {
            name
            for name in self._dense_columns & self._columns.keys()
            if self._columns[name].type in ("integer", "number") and not self._columns[name].is_text
        }
        self._plain_categories = {
            name
            for name, column in self._columns.items()
            if column.type in ("integer", "number", "text") and name not in self._dense_columns
        }
        self._taken_as_given = np.array([one.given for one in encoder.dense], dtype=bool)
        self._known: dict[tuple[str, type], dict[Any, bytes]] = {}
        self._by_value: dict[str, int] = {}
        if encoder.domain is not None:
            names = {name: name for name in encoder.domains} | encoder.domain.values
            self._by_value = {value: encoder.domains.index(name) for value, name in names.items()}
        self._frames = None
        if encoder.derived or (encoder.time is not None and encoder.time.format is not None):
            self._frames = _encoder_of_frames(encoder)

    def encode(self, columns: Columns, count: int) -> Encoded:
        """The features of ``count`` rows, given as raw values by column; a single value applies to
        all rows.

        Raises:
            InputError: a column is missing or has another type than in the log.
        """
        self.format.check_columns(list(columns))
        if self._frames is not None:
            return self._encoded_by_frames(columns, count)
        given: dict[str, Sequence[Any]] = {}

        def values_of(name: str) -> Sequence[Any]:
            if name not in given:
                column = self._columns[name]
                given[name] = self._given(columns[name], column) if name in columns else [None]
            return given[name]

        given |= self._clock(values_of)
        columns = {**columns, **self._counted(columns, values_of, {*columns, *given})}
        ids: dict[str, NDArray[np.int64]] = {}
        lists: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for one in self.format.ids:
            if one.is_list:
                lists[one.name] = self._lists(columns, values_of, one, count)
            else:
                ids[one.name] = self._single(columns, values_of, one)
        return Encoded(self._dense(columns, values_of, count), ids, lists)

    def _counted(
        self, columns: Columns, values_of: Callable[[str], Sequence[Any]], have: Set[str]
    ) -> dict[str, Sequence[Any]]:
        """The counters' features that rows lack, looked up by key; ``have`` names all given
        columns."""
        found: dict[str, Sequence[Any]] = {}
        for one in self.format.counters:
            lacking = {name for name in one.names if None in columns.get(name, (None,))}
            missing = one.missing(have - lacking)
            if not missing:
                continue
            texts = [
                [self._text(value, name) or "" for value in values_of(name)] for name in one.columns
            ]
            longest = max(map(len, [*texts, *(columns.get(name, ()) for name in missing)]))
            texts = [text if len(text) == longest else text * longest for text in texts]
            keys = [
                xxhash.xxh3_64_intdigest(CROSSED.join(parts).encode())
                for parts in zip(*texts, strict=True)
            ]
            looked_up = one.of(np.array(keys, np.uint64)).astype(np.float64)
            for name in missing:
                values = looked_up[:, one.names.index(name)].tolist()
                own = columns.get(name, [None] * longest)
                own = own if len(own) == longest else [*own] * longest
                pairs = zip(own, values, strict=True)
                found[name] = [value if given is None else given for given, value in pairs]
        return found

    def _dense(
        self, columns: Columns, values_of: Callable[[str], Sequence[Any]], count: int
    ) -> NDArray[np.float32]:
        numbers = np.empty((len(self.format.dense), count))
        for place, one in enumerate(self.format.dense):
            values = columns.get(one.column)
            found = None
            if values is not None and one.column in self._plain_numbers:
                found = _packed(values)
            if found is None:
                found = self._numbers(values_of(one.column), one.column)
            numbers[place] = found
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite: missing
            made = np.sign(numbers) * np.log1p(np.abs(numbers))
            made[self._taken_as_given] = numbers[self._taken_as_given]
            dense = np.where(np.isfinite(numbers), made, np.nan).T.astype(np.float32, order="C")
        dense[~np.isfinite(dense)] = np.nan
        return dense

    def _single(
        self, columns: Columns, values_of: Callable[[str], Sequence[Any]], one: IdEncoding
    ) -> NDArray[np.int64]:
        """Table rows [N] of a feature with one id, or [1] if all rows share it."""
        name = one.columns[0]
        if len(one.columns) > 1:
            return self._rows(self._crossed(values_of, one), one)
        values = columns.get(name)
        if values is not None and name in self._plain_categories:
            found = self._remembered(values, one.name)
            if found is not None:
                return found
        return self._rows(values_of(name), one)

    def domains_of(self, columns: Columns, count: int) -> NDArray[np.int64] | None:
        """Index [N] of each row's domain; None if the rows do not name one.

        Raises:
            InputError: a value is not a domain.
        """
        domain = self.format.domain
        if domain is None:
            return np.zeros(count, np.int64)
        if domain.column in dict(self.format.derived):
            assert self._frames is not None
            found = self._frames.domain_of(_frame(columns, count))
            return None if found is None else found.to_numpy().astype(np.int64)
        free = DOMAIN_COLUMN not in self._columns
        names = [domain.column, *([DOMAIN_COLUMN] if free else [])]
        name = next((name for name in names if name in columns), None)
        if name is None:
            return None
        other = None if domain.other is None else self.format.domains.index(domain.other)
        values = columns[name]
        found = self._remembered(values, DOMAIN)
        if found is not None:
            return found
        places = []
        for value in values:
            text = canonical(text_of(value, name), ())
            place = other if text is None else self._by_value.get(text, other)
            if place is None:
                raise InputError(
                    f"column {name!r} holds {value!r}, which is not a domain; domains: "
                    f"{', '.join(self.format.domains)} (in the log: {', '.join(domain.values)})"
                )
            places.append(place)
        self._remember(values, places, DOMAIN)
        return np.array(places, dtype=np.int64)

    def _given(self, values: Sequence[Any], column: RawColumn) -> Sequence[Any]:
        """Raw values in the log's types, with None where they are missing."""
        name, is_number = column.name, column.name in self._dense_columns
        kinds = set(map(type, values))
        if kinds <= {int, type(None)} and column.type != "boolean" and not column.is_text:
            return values
        if kinds <= {str, type(None)} and column.type != "time" and not is_number:
            return values  # cleaned when a new value is read
        if column.is_text:
            return [self._cleaned(value, column) for value in values]
        if kinds <= {float, int, type(None)} and is_number and column.type != "boolean":
            return values
        found = []
        for value in values:
            if isinstance(value, str):
                if is_number:
                    raise InputError(f"column {name!r} holds {value!r}; expected numbers")
                value = self._cleaned(value, column)
                if column.type == "time" and value is not None and self.format.time is None:
                    value = _moment(value, name)
            elif column.type == "boolean" and isinstance(value, int | float):
                value = None if value != value else bool(value)
            elif isinstance(value, float | np.floating) and value != value:
                value = None
            found.append(value)
        return found

    def _cleaned(self, value: Any, column: RawColumn) -> Any:
        if isinstance(value, list | tuple | np.ndarray):
            return value
        text = text_of(value, column.name)
        if text is None or column.name not in self._stripped:
            return canonical(text, self._null_values)
        text = text.strip(BLANK)
        return None if text == "" or text in self._null_values else text

    def _clock(self, values_of: Callable[[str], Sequence[Any]]) -> dict[str, Sequence[Any]]:
        moment = self.format.time
        if moment is None:
            return {}
        hours = [milliseconds_of(one, moment) // MS_PER_HOUR for one in values_of(moment.column)]
        made: dict[str, Sequence[Any]] = {
            EVENT_HOUR: [hour % HOURS_PER_DAY for hour in hours],
            EVENT_WEEKDAY: [
                (hour // HOURS_PER_DAY + FIRST_WEEKDAY) % DAYS_PER_WEEK for hour in hours
            ],
        }
        return {name: made[name] for name in self.format.clock}

    def _numbers(self, values: Sequence[Any], name: str) -> NDArray[np.float64]:
        if set(map(type, values)) <= {int, float, type(None)}:
            try:
                return np.array(values, dtype=np.float64)
            except OverflowError:
                pass  # the value is named below
        return np.array([number_of(value, name) for value in values], dtype=np.float64)

    def _crossed(
        self, values_of: Callable[[str], Sequence[Any]], one: IdEncoding
    ) -> list[str | None]:
        texts = [[self._text(value, name) for value in values_of(name)] for name in one.columns]
        longest = max(map(len, texts))
        texts = [one if len(one) == longest else one * longest for one in texts]
        return [
            None if None in parts else CROSSED.join(part for part in parts if part is not None)
            for parts in zip(*texts, strict=True)
        ]

    def _text(self, value: Any, name: str) -> str | None:
        if isinstance(value, list | tuple | np.ndarray):
            raise InputError(f"column {name!r} holds a list; expected one value per row")
        return self._canonical(text_of(value, name), name)

    def _canonical(self, text: str | None, name: str) -> str | None:
        if text is not None and name in self._stripped:
            text = text.strip(BLANK)
        return canonical(text, self._null_values)

    def _rows(self, values: Sequence[Any], one: IdEncoding) -> NDArray[np.int64]:
        """Table rows of single values; each distinct value is encoded once and cached."""
        found = self._remembered(values, one.name)
        if found is not None:
            return found
        if set(map(type, values)) - {NoneType} not in ({str}, {int}, {float}):
            return np.array([self._row(value, one) for value in values], dtype=np.int64)
        rows = {value: self._row(value, one) for value in dict.fromkeys(values)}
        places = list(map(rows.__getitem__, values))
        self._remember(values, places, one.name)
        return np.array(places, dtype=np.int64)

    def _remembered(self, values: Sequence[Any], what: str) -> NDArray[np.int64] | None:
        """The cached row of each value; None if some are not cached.

        Texts and integers are cached separately. No value of another type equals a text, but True
        and 1.0 equal 1, so integers may not be mixed with other types.
        """
        kind = next((type(value) for value in values if value is not None), str)
        known = self._known.get((what, kind))
        if known is None or (kind is int and not set(map(type, values)) <= {int, NoneType}):
            return None
        try:
            found = itemgetter(*values)(known) if len(values) > 1 else (known[values[0]],)
        except (KeyError, IndexError, TypeError):  # a new value, no value, or an unhashable one
            return None
        return np.frombuffer(b"".join(found), np.int64)

    def _remember(self, values: Sequence[Any], rows: Sequence[int], what: str) -> None:
        """Cache the row of each value, if all are texts or all are integers. Rows are stored as
        eight bytes, which turn into an array faster than integers."""
        kinds = set(map(type, values)) - {NoneType}
        if kinds != {str} and kinds != {int}:
            return
        known = self._known.setdefault((what, kinds.pop()), {})
        if len(known) > REMEMBERED:  # recent values will be cached again
            known.clear()
        known.update(
            (value, row.to_bytes(8, "little"))
            for value, row in dict(zip(values, rows, strict=True)).items()
        )

    def _row(self, value: Any, one: IdEncoding) -> int:
        if one.way == "id":
            return _checked_id(value, one)
        text = self._text(value, one.columns[0])
        if one.way == "hash":
            return row_of(text, one.table_rows)
        return 0 if text is None else int(self.format.vocabularies[one.name].rows_of([text])[0])

    def _lists(
        self,
        columns: Columns,
        values_of: Callable[[str], Sequence[Any]],
        one: IdEncoding,
        count: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        name = one.columns[0]
        values: Sequence[Any] = columns.get(name, ())
        if name not in self._columns or set(map(type, values)) != {list}:
            values = [self._elements(value, one) for value in values_of(name)]
        counts = np.fromiter(map(len, values), np.int64, len(values))
        rows = self._rows(list(chain.from_iterable(values)), one)
        times = count // len(values) if values else 1  # one list for all rows
        return (rows, counts) if times == 1 else (np.tile(rows, times), np.tile(counts, times))

    def _elements(self, value: Any, one: IdEncoding) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, list):
            return value
        if isinstance(value, np.ndarray | tuple):
            return value.tolist() if isinstance(value, np.ndarray) else list(value)
        if isinstance(value, str) and one.separator is not None and one.way != "id":
            value = self._canonical(value, one.columns[0])
            if value is None:
                return []
            parts = value.strip(" []()\t").split(one.separator)
            stripped = [part.strip(" '\"") for part in parts]
            return [part for part in stripped if part]
        if isinstance(value, float) and math.isnan(value):
            return []
        raise InputError(f"column {one.columns[0]!r} holds {type(value).__name__}; expected lists")

    def _encoded_by_frames(self, columns: Columns, count: int) -> Encoded:
        assert self._frames is not None
        names = [name for name in self._columns if name in columns]
        frame = self._frames.encode(_frame({name: columns[name] for name in names}, count))
        dense = np.empty((count, len(self.format.dense)), np.float32)
        for place, one in enumerate(self.format.dense):
            dense[:, place] = frame[one.name].to_numpy()
        lists = {}
        for one in self.format.ids:
            if one.is_list:
                lengths = frame[one.name].list.len().to_numpy().astype(np.int64)
                flat = frame[one.name].list.explode(keep_nulls=False, empty_as_null=False)
                lists[one.name] = flat.to_numpy().astype(np.int64), lengths
        ids = {one.name: frame[one.name].to_numpy() for one in self.format.ids if not one.is_list}
        return Encoded(dense, ids, lists)


def _packed(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Numbers as float64; None if a value is not a number, which the caller handles."""
    try:
        return np.frombuffer(struct.pack(f"{len(values)}d", *values))
    except (struct.error, OverflowError, TypeError):
        return None


def _encoder_of_frames(encoder: EncoderFormat) -> Any:
    try:
        from recsys.data.encoder import Encoder
    except ImportError as error:
        raise InputError(
            f"encoder.json: columns made by SQL expressions, and times in a format of their own, "
            f"need polars, polars-hash and pyarrow at serving, too ({error}); install them, or "
            f"leave these columns out"
        ) from error
    fields = {name: getattr(encoder, name) for name in EncoderFormat.__dataclass_fields__}
    return Encoder(**fields)


def _frame(columns: Columns, count: int) -> Any:
    import polars as pl

    row = pl.Series("own:row", np.arange(count))  # rows may have none of the columns
    columns = {
        name: [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
        * (1 if len(values) == count else count)
        for name, values in columns.items()
    }
    try:
        return pl.DataFrame([row, *(pl.Series(name, one) for name, one in columns.items())])
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"a column mixes values that are of no one type: {reason}") from None


def _moment(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"column {name!r} holds {text!r}; expected a time like 2024-01-31T00:00:00"
        ) from None


def _checked_id(value: Any, one: IdEncoding) -> int:
    where, bound = f"column {one.columns[0]!r}", one.table_rows
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"{where} holds null; every row needs one id")
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | Decimal):
        raise InputError(f"{where} holds {type(value).__name__}; expected ids in [0, {bound})")
    if not 0 <= value < bound or value != int(value):
        raise InputError(f"{where}: ids must be in [0, {bound}), got {value}")
    return int(value)
