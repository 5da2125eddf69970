"""Turn a table log's parsed rows into the columns of a part, and build the encoder."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import polars as pl

from recsys.config import InputError
from recsys.data.collisions import TableUse, auto_rows
from recsys.data.encoder import (
    EXAMPLES_PER_DOMAIN,
    Encoder,
    category_values,
    plain_rows,
)
from recsys.data.encoder_format import (
    EVENT_HOUR,
    EVENT_WEEKDAY,
    DenseEncoding,
    DomainEncoding,
    IdEncoding,
    RawColumn,
    Type,
    ValuesByKey,
)
from recsys.data.encoding import (
    canonical_text,
    category_text,
    counted_values,
    hash_text,
)
from recsys.data.names import EVENT_TIME, feature_column
from recsys.data.schema import MAIN_TASK, WEIGHT, CategoricalFeature, task_columns
from recsys.data.settings import (
    CategoricalColumnSettings,
    CrossSettings,
    MomentSettings,
    TableSettings,
)
from recsys.data.sources.base import DOMAIN, EXAMPLE, LABEL, LABEL_TIME, OWN_WEIGHT, ROW
from recsys.data.sources.counters import counter_names
from recsys.data.sources.expressions import TEXT
from recsys.data.sources.history import HISTORY
from recsys.data.vocabulary import FIRST_ROW, VocabularyGrowth

SHOWN_COUNT = "shown_count"
CLOCK = (EVENT_HOUR, EVENT_WEEKDAY)  # computed if a feature uses them
# Types that all values of a text column may have, by preference: sent in that type, a value has the
# same text as in the log
READINGS: dict[Type, str] = {
    "integer": r"^(0|-?[1-9]\d{0,17})$",
    "number": r"^-?(0|[1-9]\d{0,8})(\.\d{0,5}[1-9])?$",
    "boolean": r"^(true|false)$",
}
ROWS_READ = 100_000  # the first ones; reading more would cost as much as encoding


def table_tasks(settings: TableSettings) -> list[str]:
    """The main task, then those of ``labels``."""
    return [MAIN_TASK, *settings.labels]


def table_domains(settings: TableSettings) -> list[str]:
    """Names of the domains, in order."""
    if settings.domain is None:
        return ["all"]
    other = [settings.domain.other] if settings.domain.other else []
    return list(dict.fromkeys([*settings.domain.values.values(), *other]))


def negative_rates(settings: TableSettings) -> list[float]:
    """``negative_rate`` per domain, in order; empty if no rows were left out.

    Raises:
        InputError: a name is not a domain.
    """
    rate, domains = settings.negative_rate, table_domains(settings)
    if rate is None:
        return []
    if not isinstance(rate, dict):
        return [rate] * len(domains)
    unknown = next((name for name in rate if name not in domains), None)
    if unknown is not None:
        raise InputError(
            f"{settings.where('negative_rate')}: {unknown!r} is not a domain; domains: "
            f"{', '.join(domains)}"
        )
    return [rate.get(name, 1.0) for name in domains]


def domain_encoding(settings: TableSettings) -> DomainEncoding | None:
    """How to find a row's domain; None if there is only one domain."""
    if settings.domain is None:
        return None
    listed = canonical_text(pl.Series("value", list(settings.domain.values), dtype=pl.String), ())
    values = dict(zip(listed, settings.domain.values.values(), strict=True))
    return DomainEncoding(settings.domain.column, values, settings.domain.other)


def categories(settings: TableSettings) -> list[CategoricalColumnSettings | CrossSettings]:
    """The categorical features without the history, in order."""
    return [*settings.categorical, *settings.crosses]


def table_features(settings: TableSettings) -> list[str]:
    """Columns of the features in order: dense, counters, categorical, crosses, history.

    Raises:
        InputError: two features have one name.
    """
    listed = [(name, "dense") for name in settings.dense]
    listed += [(name, "counters") for one in settings.counters for name in counter_names(one)]
    listed += [(one.feature, "categorical") for one in settings.categorical]
    listed += [(one.feature, "crosses") for one in settings.crosses]
    if settings.history is not None:
        listed.append((settings.history.name, "history"))
    first: dict[str, str] = {}
    for name, place in listed:
        if name in first:
            raise InputError(
                f"{settings.where(place)}: feature {name!r} is listed twice (in {first[name]} and "
                f"{place}); list it once, or give the one in categorical, crosses, counters or "
                f"history another 'name'"
            )
        first[name] = place
    return [feature_column(name, table_tasks(settings)) for name in first]


def feature_values(
    frame: pl.DataFrame,
    one: CategoricalColumnSettings | CrossSettings,
    null_values: Sequence[str],
) -> pl.Series:
    """A categorical feature's raw values; see :func:`category_values`."""
    for name in one.columns:
        _check_kind(name, frame.schema[name], one)
    return category_values(frame, one.columns, null_values, one.kind == "list", one.separator)


def _check_kind(
    name: str, dtype: pl.DataType, settings: CategoricalColumnSettings | CrossSettings
) -> None:
    is_list = isinstance(dtype, pl.List | pl.Array)
    if isinstance(settings, CrossSettings):
        if is_list:
            raise InputError(
                f"{settings.where('columns')}: column {name!r} holds lists, which cannot be crossed"
            )
        return
    key = settings.where("kind")
    if is_list and settings.kind == "id":
        raise InputError(f"{key}: column {name!r} holds lists; set kind: list")
    splits = dtype == pl.String and settings.separator is not None
    if settings.kind == "list" and not (is_list or splits or dtype == pl.Null):
        raise InputError(
            f"{key}: column {name!r} holds {dtype}, not lists; if it is text, set separator to "
            f"what separates its elements"
        )


class TableEncoding:
    """Encodes a table log's examples frame by frame, and builds the log's encoder.

    Frames come in event time. If there are vocabularies, first :meth:`count` all frames of the
    first window, then call :meth:`start_window` before every frame. Each window is then encoded
    with the vocabulary of earlier windows, and the first one with its own.

    Args:
        types: types of the log's columns, derived columns and the item of impressions.
        distinct: number of distinct values by feature, where ``table_rows`` is auto.
        rows: upper bound on the log's examples.

    Raises:
        InputError: a column does not match the settings.
    """

    def __init__(
        self,
        settings: TableSettings,
        types: Mapping[str, pl.DataType],
        distinct: Mapping[str, int],
        rows: int,
    ) -> None:
        self._settings, self._tasks = settings, table_tasks(settings)
        self._features = table_features(settings)
        names = iter(self._features)
        counters = [name for one in settings.counters for name in counter_names(one)]
        _check_made(settings, counters, types)
        dense = [DenseEncoding(next(names), name) for name in settings.dense]
        dense += [DenseEncoding(next(names), name, given=True) for name in counters]
        self._growing: dict[str, tuple[CategoricalColumnSettings | CrossSettings, VocabularyGrowth]]
        self._growing = {}
        self.uses: list[TableUse] = []
        self._use_of: dict[str, TableUse] = {}
        ids: list[IdEncoding] = []
        for one in categories(settings):
            for column in one.columns:
                _check_kind(column, types.get(column, pl.Int64()), one)
            name, table_rows = next(names), one.table_rows
            if table_rows == "auto":
                table_rows = _auto_rows(one, distinct[one.feature], rows)
            is_list = one.kind == "list"
            way = one.encoding.kind
            ids.append(IdEncoding(name, one.columns, table_rows, way, is_list, one.separator))
            if way == "vocabulary":
                self._growing[name] = one, VocabularyGrowth(table_rows, one.encoding.min_count)
            else:
                self._use(name, one.feature, table_rows)
        history = settings.history
        if history is not None:
            name, table_rows = next(names), history.table_rows
            if table_rows == "auto":
                of_item = [
                    one.table_rows
                    for one in ids
                    if one.columns == [history.item] and one.way == "hash"
                ]
                table_rows = of_item[0] if of_item else auto_rows(distinct[history.name])
            ids.append(IdEncoding(name, [history.name], table_rows, "id", is_list=True))
            self._use(name, history.name, table_rows)
        self._encoder = _encoder(settings, types, dense, ids)
        split = [name for one in settings.categorical if one.kind == "list" for name in one.columns]
        texts = [one.name for one in self._encoder.columns if one.is_text and not one.is_list]
        # A text-only log does not say which types its values have
        is_typed = settings.file_format not in ("csv", "tsv")
        self._unread_texts = {name for name in texts if not is_typed and name not in split}
        self._window: str | None = None
        self._is_first = True
        self._readings: dict[str, set[Type]] = {}
        self._rows_read = 0
        self._missing: set[str] = set()
        self._examples: dict[int, pl.DataFrame] = {}

    def _use(self, name: str, feature: str, table_rows: int) -> None:
        self._use_of[name] = TableUse(feature, table_rows)
        self.uses.append(self._use_of[name])

    @property
    def dense(self) -> list[str]:
        """Columns of the dense features."""
        return [one.name for one in self._encoder.dense]

    @property
    def categorical(self) -> list[CategoricalFeature]:
        """The categorical features."""
        return [
            CategoricalFeature(one.name, one.table_rows, "list" if one.is_list else "id")
            for one in self._encoder.ids
        ]

    @property
    def history_use(self) -> TableUse:
        """The use of the history's table, if there is a history."""
        return self.uses[-1]

    @property
    def vocabularies(self) -> list[str]:
        """The features with a vocabulary, for which a row's window matters."""
        return list(self._growing)

    @property
    def has_started(self) -> bool:
        """Whether :meth:`start_window` has been called."""
        return self._window is not None

    def count(self, frame: pl.DataFrame) -> None:
        """Count the values of a window's examples for the vocabularies of later windows."""
        for one, growth in self._growing.values():
            values = feature_values(frame, one, self._settings.null_values)
            growth.count(counted_values(values, self._settings.null_values))

    def start_window(self, name: str | None) -> None:
        """If ``name`` is a new window, give rows to the values that are frequent by now; None:
        after the last window."""
        if name == self._window and name is not None:
            return
        self._is_first, self._window = self._window is None, name
        for _, growth in self._growing.values():
            growth.grow(name)
        vocabularies = {name: growth.vocabulary for name, (_, growth) in self._growing.items()}
        self._encoder = replace(self._encoder, vocabularies=vocabularies)

    def part(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns of a part for examples in event time, with counters and ``own:history``."""
        frame = self._with_history(frame)
        self._look_at(frame)
        part = self._own(frame).hstack(self._encoder.features(frame, uses=self._use_of))
        if not self._is_first:  # the first window is counted already
            self.count(frame)
        return part

    def candidates_part(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns of a part for candidates, which leave no trace in the encoder."""
        frame = self._with_history(frame)
        return self._own(frame).hstack(self._encoder.features(frame))

    def _with_history(self, frame: pl.DataFrame) -> pl.DataFrame:
        history = self._settings.history
        if history is None:
            return frame
        return frame.with_columns(pl.col(HISTORY).alias(history.name))

    def _own(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns of a part that are no features."""
        settings = self._settings
        group = frame[ROW] if settings.group is None else _group(frame[settings.group])
        return frame.select(
            pl.col(EXAMPLE).alias("example_id"),
            pl.col(EVENT_TIME).alias("event_time"),
            pl.col(LABEL_TIME).alias("label_time"),
            pl.col(DOMAIN).alias("domain"),
            group.alias("group"),
            *([pl.col(OWN_WEIGHT).alias(WEIGHT)] if settings.weight is not None else []),
            *(
                pl.col(own).alias(name)
                for own, name in zip(
                    task_columns(LABEL, self._tasks),
                    task_columns("label", self._tasks),
                    strict=True,
                )
            ),
        )

    def encoder(self, counters: list[ValuesByKey]) -> Encoder:
        """The log's encoder once all windows are encoded: for rows after them, with ``counters`` of
        the same time."""
        self.start_window(None)
        columns = [
            replace(
                column,
                type=self._type(column),
                optional=column.optional or column.name in self._missing,
            )
            for column in self._encoder.columns
        ]
        frames = [self._examples[domain] for domain in sorted(self._examples)]
        examples = [row for frame in frames for row in plain_rows(frame, columns)]
        counters = [
            replace(one, needed=[name for name in one.columns if name not in self._missing])
            for one in counters
        ]
        return replace(self._encoder, columns=columns, examples=examples, counters=counters)

    def _look_at(self, frame: pl.DataFrame) -> None:
        """Note which raw columns have missing values, which types fit the first texts, and example
        rows."""
        for column in self._encoder.columns:
            if column.name not in frame.columns:
                continue
            values = frame[column.name]
            if values.null_count():
                self._missing.add(column.name)
            if column.name in self._unread_texts and values.dtype == pl.String:
                texts = values.head(max(ROWS_READ - self._rows_read, 0)).drop_nulls().unique()
                if len(texts):
                    found = self._readings.setdefault(column.name, set(READINGS))
                    found -= {
                        reading
                        for reading in found
                        if not texts.str.contains(READINGS[reading]).all()
                    }
        self._rows_read += frame.height
        domain = self._settings.domain
        names = [column.name for column in self._encoder.columns]
        names += [domain.column] if domain is not None and domain.column not in names else []
        for index in frame[DOMAIN].unique():
            have = self._examples.get(index)
            lacking = EXAMPLES_PER_DOMAIN - (0 if have is None else have.height)
            if lacking:
                rows = frame.filter(pl.col(DOMAIN) == index).head(lacking)
                rows = rows.select(name for name in names if name in rows.columns)
                self._examples[index] = (
                    rows if have is None else pl.concat([have, rows], how="vertical_relaxed")
                )

    def _type(self, column: RawColumn) -> Type:
        only_numbers = {one.column for one in self._encoder.dense}
        only_numbers -= {name for one in self._encoder.ids for name in one.columns}
        if column.is_text and column.name in only_numbers:
            return "number"
        for reading in READINGS:
            if reading in self._readings.get(column.name, ()):
                return reading
        return column.type


def _check_made(
    settings: TableSettings, counters: list[str], types: Mapping[str, pl.DataType]
) -> None:
    """Refuse computed features with the name of a raw column."""
    history = settings.history
    made = [(name, "counters") for name in counters]
    made += [(history.name, "history.name")] if history is not None else []
    for name, key in made:
        if name in types:
            raise InputError(
                f"{settings.where(key)}: the log has a column {name!r} of its own; give the "
                f"feature another name"
            )


def _auto_rows(one: CategoricalColumnSettings | CrossSettings, distinct: int, rows: int) -> int:
    """``table_rows: auto``; for a vocabulary, at most as many values as can be frequent among
    ``rows``."""
    if one.encoding.kind == "hash":
        return auto_rows(distinct)
    return FIRST_ROW + min(distinct, rows // one.encoding.min_count)


def _encoder(
    settings: TableSettings,
    types: Mapping[str, pl.DataType],
    dense: list[DenseEncoding],
    ids: list[IdEncoding],
) -> Encoder:
    """The encoder before any row was seen."""
    read = [*(one.column for one in dense), *(name for one in ids for name in one.columns)]
    domain = domain_encoding(settings)
    if domain is not None and domain.column in settings.columns:
        read.append(domain.column)
    keys = {name for counter in settings.counters for name in counter.by} - {*read}
    read += sorted(keys)
    clock = [name for name in CLOCK if name in read and name not in types]
    moment = settings.time
    read = _with_inputs(read, settings, types)
    derived = [(name, text) for name, text in settings.columns.items() if name in read]
    made = {*clock, *settings.columns}
    times = [one.column for one in (settings.time, settings.label_time) if one is not None]
    if clock and moment is not None:
        values = moment.model_dump(include=set(MomentSettings.model_fields))
        moment = MomentSettings(**values)
    return Encoder(
        columns=[
            replace(column, optional=column.optional or column.name in keys)
            for column in (
                _raw_column(name, settings, types)
                for name in dict.fromkeys(read)
                if name not in made
            )
        ],
        dense=dense,
        ids=ids,
        null_values=settings.null_values,
        derived=derived,
        time=moment if clock else None,
        clock=clock,
        stripped=[name for name in dict.fromkeys([*settings.dense, *times]) if name in read],
        domains=table_domains(settings),
        domain=domain,
    )


def _with_inputs(read: list[str], settings: TableSettings, names: Collection[str]) -> list[str]:
    """``read`` plus the columns among ``names`` that clock features and expressions need."""
    found = list(read)
    if settings.time is not None and any(name in read for name in CLOCK if name not in names):
        found.append(settings.time.column)
    for name, text in reversed(settings.columns.items()):
        if name in found:
            found += [column for column in names if _is_read(column, text)]
    return found


def read_columns(settings: TableSettings, names: Collection[str]) -> list[str]:
    """The columns among ``names`` that are needed to encode a row."""
    read = [*settings.dense, *(name for one in categories(settings) for name in one.columns)]
    read += [settings.domain.column] if settings.domain is not None else []
    return _with_inputs(read, settings, names)


def _is_read(column: str, expression: str) -> bool:
    """Whether an SQL expression contains the name ``column``."""
    name = rf"(?<!\w){re.escape(column)}(?!\w)"
    return column != "" and re.search(name, TEXT.sub("", expression)) is not None


def _raw_column(name: str, settings: TableSettings, types: Mapping[str, pl.DataType]) -> RawColumn:
    if settings.history is not None and name == settings.history.name:
        return RawColumn(name, "integer", is_list=True, optional=True, origin="history")
    if any(name in counter_names(one) for one in settings.counters):
        return RawColumn(name, "number", optional=True, origin="counters")
    if name not in types:
        return RawColumn(name, "integer", origin="impressions")  # shown_count
    dtype = types[name]
    # A column without any value has no type
    lists = [one.column for one in settings.categorical if one.kind == "list"]
    is_list = isinstance(dtype, pl.List | pl.Array) or (dtype == pl.Null and name in lists)
    inner = pl.Series(dtype=dtype.inner).dtype if isinstance(dtype, pl.List | pl.Array) else dtype
    kind: Type = "text"
    if inner == pl.Boolean:
        kind = "boolean"
    elif inner.is_integer():
        kind = "integer"
    elif inner.is_numeric():
        kind = "number"
    elif inner.is_temporal():
        kind = "time"
    is_item = settings.explode is not None and name == settings.explode.item
    return RawColumn(
        name,
        kind,
        is_list,
        is_text=kind == "text",
        optional=is_list or dtype == pl.Null,
        origin="impressions" if is_item else "log",
    )


def _group(column: pl.Series) -> pl.Series:
    """Int64 groups: integers unchanged, anything else by a stable hash."""
    if column.dtype == pl.UInt64:
        return column.fill_null(2**64 - 1).reinterpret(signed=True)
    if column.dtype.is_integer():
        return column.cast(pl.Int64).fill_null(-1)
    text = category_text(column).fill_null("")
    return pl.Series(column.name, hash_text(text).astype("int64"))
