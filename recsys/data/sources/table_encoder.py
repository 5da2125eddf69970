"""From parsed rows of a table log to the columns of a part."""

from dataclasses import dataclass

import polars as pl

from recsys.config import InputError
from recsys.data.collisions import TableUse, auto_rows
from recsys.data.encoding import (
    category_text,
    distinct_values,
    hash_text,
    hash_to_rows,
    signed_log1p,
)
from recsys.data.names import feature_column
from recsys.data.schema import MAIN_TASK, CategoricalFeature, task_columns
from recsys.data.settings import CategoricalColumnSettings, TableSettings
from recsys.data.sources.base import DOMAIN, EVENT_TIME, EXAMPLE, LABEL, LABEL_TIME, NUMBER, ROW
from recsys.data.sources.counters import counter_names
from recsys.data.sources.history import HISTORY, add_history


def table_tasks(settings: TableSettings) -> list[str]:
    return [MAIN_TASK, *settings.labels]


def table_features(settings: TableSettings) -> list[str]:
    """Columns of the features in their order: dense, counters, categorical, history.

    Raises:
        InputError: two features have one name.
    """
    listed = [(name, "dense") for name in settings.dense]
    listed += [(name, "counters") for one in settings.counters for name in counter_names(one)]
    listed += [(one.feature, "categorical") for one in settings.categorical]
    if settings.history is not None:
        listed.append((settings.history.name, "history"))
    first: dict[str, str] = {}
    for name, place in listed:
        if name in first:
            raise InputError(
                f"{settings.where(place)}: feature {name!r} is listed twice (in {first[name]} and "
                f"{place}); list it once, or give the one in categorical, counters or history "
                f"another 'name'"
            )
        first[name] = place
    return [feature_column(name, table_tasks(settings)) for name in first]


@dataclass
class EncodedTable:
    """A categorical feature, what it is made of (None: the history) and the use of its table."""

    feature: CategoricalFeature
    column: CategoricalColumnSettings | None
    use: TableUse


def encoded_tables(frame: pl.DataFrame, settings: TableSettings) -> list[EncodedTable]:
    tables: list[EncodedTable] = []
    for one in settings.categorical:
        _check_kind(frame.schema[one.column], one)
        rows = one.table_rows
        if rows == "auto":
            rows = auto_rows(distinct_values(_values(frame, one), settings.null_values))
        name = feature_column(one.feature, table_tasks(settings))
        use = TableUse(one.feature, rows)
        tables.append(EncodedTable(CategoricalFeature(name, rows, one.kind), one, use))
    history = settings.history
    if history is not None:
        rows = history.table_rows
        if rows == "auto":
            of_item = [t.use.table_rows for t in tables if t.column.column == history.item]  # type: ignore[union-attr]
            rows = of_item[0] if of_item else auto_rows(distinct_values(frame[history.item]))
        name = feature_column(history.name, table_tasks(settings))
        use = TableUse(history.name, rows)
        tables.append(EncodedTable(CategoricalFeature(name, rows, "list"), None, use))
    return tables


def _check_kind(dtype: pl.DataType, settings: CategoricalColumnSettings) -> None:
    is_list = isinstance(dtype, pl.List | pl.Array)
    name, key = settings.column, settings.where("kind")
    if is_list and settings.kind == "id":
        raise InputError(f"{key}: column {name!r} holds lists; set kind: list")
    splits = dtype == pl.String and settings.separator is not None
    if settings.kind == "list" and not (is_list or splits or dtype == pl.Null):
        raise InputError(
            f"{key}: column {name!r} holds {dtype}, no lists; if it is text, set separator to what "
            f"its elements stand apart by"
        )


def _values(frame: pl.DataFrame, settings: CategoricalColumnSettings) -> pl.Series:
    """The column, its texts split if it is to be a list."""
    column = frame[settings.column]
    if settings.kind == "id" or column.dtype != pl.String:
        return column.cast(pl.List(pl.String)) if _is_null_list(column, settings) else column
    element = pl.element().str.strip_chars(" '\"")
    split = pl.col(column.name).str.strip_chars(" []()\t").str.split(settings.separator or " ")
    return frame.select(split.list.eval(element.filter(element != "")))[column.name]


def _is_null_list(column: pl.Series, settings: CategoricalColumnSettings) -> bool:
    return settings.kind == "list" and column.dtype == pl.Null


def encoded_part(
    frame: pl.DataFrame, settings: TableSettings, features: list[str], tables: list[EncodedTable]
) -> pl.DataFrame:
    tasks = table_tasks(settings)
    group = frame[ROW] if settings.group is None else _group(frame[settings.group])
    counters = [name for one in settings.counters for name in counter_names(one)]
    if settings.history is not None:
        frame = add_history(frame, settings.history, settings.null_values, tables[-1].use)
    dense = [
        *(
            signed_log1p(NUMBER + name if NUMBER + name in frame.columns else name)
            for name in settings.dense
        ),
        *(pl.col(name).cast(pl.Float32) for name in counters),
    ]
    ids = [
        frame[HISTORY]
        if one.column is None
        else hash_to_rows(
            _values(frame, one.column), one.use.table_rows, settings.null_values, one.use
        )
        for one in tables
    ]
    return frame.select(
        pl.col(EXAMPLE).alias("example_id"),
        pl.col(EVENT_TIME).alias("event_time"),
        pl.col(LABEL_TIME).alias("label_time"),
        pl.col(DOMAIN).alias("domain"),
        group.alias("group"),
        *(
            pl.col(own).alias(name)
            for own, name in zip(
                task_columns(LABEL, tasks), task_columns("label", tasks), strict=True
            )
        ),
        *(value.alias(column) for value, column in zip([*dense, *ids], features, strict=True)),
    )


def _group(column: pl.Series) -> pl.Series:
    """Int64; integers as they are, anything else by a stable hash."""
    if column.dtype == pl.UInt64:
        return column.fill_null(2**64 - 1).reinterpret(signed=True)
    if column.dtype.is_integer():
        return column.cast(pl.Int64).fill_null(-1)
    text = category_text(column).fill_null("")
    return pl.Series(column.name, hash_text(text).astype("int64"))
