"""Side tables (ads, users, conversions) joined to a log by key, block by block; side tables are in
memory, the log is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from recsys.config import InputError
from recsys.data.encoding import canonical_text, category_text
from recsys.data.names import EVENT_TIME, OWN
from recsys.data.settings import JoinSettings, MomentSettings, TableSettings
from recsys.data.sources.expressions import with_derived
from recsys.data.sources.files import resolve_files
from recsys.data.sources.reading import open_tables
from recsys.data.sources.times import whole_times
from recsys.scratch import scratch

KEY, SINCE, PLACE, MATCHED = f"{OWN}key_", f"{OWN}since", f"{OWN}place", f"{OWN}matched"


@dataclass(frozen=True)
class SideTable:
    """A side table as read: one row per key, or per key and time from which it is valid.

    ``rows`` has a text column per key, the joined columns under their new names, and a column that
    is true for every row.
    """

    settings: JoinSettings
    rows: pl.DataFrame

    @property
    def keys(self) -> list[str]:
        """The names of the key columns in ``rows``."""
        return [f"{KEY}{index}" for index in range(len(self.settings.keys))]


@dataclass(frozen=True)
class Joins:
    """The side tables of a log: those joined to its ``rows``, and those that need an example's
    item, which a row of impressions or a click does not have yet."""

    settings: TableSettings
    root: Path | str
    folder: Path
    rows: list[SideTable]
    examples: list[SideTable]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reads the side tables itself."""
        return Joins.of, (self.settings, self.root, self.folder)

    @staticmethod
    def of(settings: TableSettings, root: Path | str, folder: Path) -> "Joins":
        """Read the side tables of ``settings``; ``folder`` holds copies of files behind URLs.

        Raises:
            InputError: see :func:`read_side_tables`.
        """
        tables = read_side_tables(settings.joins, root, settings.null_values, folder)
        late = [needs_item(table.settings, settings) for table in tables]
        return Joins(
            settings,
            root,
            folder,
            [table for table, is_late in zip(tables, late, strict=True) if not is_late],
            [table for table, is_late in zip(tables, late, strict=True) if is_late],
        )

    def of_rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A block of the log's rows with their joined columns."""
        return with_joined(frame, self.rows, self.settings.time, self.settings.null_values)

    def of_examples(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Examples with the columns joined to their items; dense features as numbers."""
        frame = with_joined(frame, self.examples, self.settings.time, self.settings.null_values)
        joined = [name for table in self.examples for name in table.settings.names]
        numbers = [name for name in self.settings.dense if name in joined]
        return frame.with_columns(pl.col(numbers).cast(pl.Float64, strict=False))


def needs_item(join: JoinSettings, settings: TableSettings) -> bool:
    """Whether it must be joined to examples, because its key includes an item that rows do not have
    yet."""
    items = {one.item for one in (settings.explode, settings.sample_negatives) if one}
    return bool(items & join.keys.keys())


def read_side_tables(
    joins: Sequence[JoinSettings],
    root: Path | str,
    null_values: Sequence[str],
    folder: Path | None = None,
) -> list[SideTable]:
    """Read the side tables; relative paths are under ``root``. Rows without a key are left out.

    ``folder`` holds copies of files behind URLs; None: URLs are refused.

    Raises:
        InputError: a file cannot be read, lacks a column, or has two rows with the same key (and
            the same time, if it has times); the message names the key.
    """
    return [_read(settings, root, null_values, folder) for settings in joins]


def _read(
    settings: JoinSettings, root: Path | str, null_values: Sequence[str], folder: Path | None
) -> SideTable:
    files = resolve_files(settings.files, root, folder)
    time = [] if settings.time is None else [settings.time.column]
    wanted = list(dict.fromkeys([*settings.keys.values(), *settings.columns, *time]))
    made = [*settings.columns, *settings.derived]
    expressions = " ".join(settings.derived.values())
    with TemporaryDirectory(dir=scratch()) as unpacked:
        tables = open_tables(
            files,
            settings.file_format,
            wanted,
            lambda name: name != "" and name in expressions,
            settings.quotes,
            Path(unpacked),
            settings.header,
        )
        raw = pl.concat(
            with_derived(frame, settings.derived, settings.where("derived")).select(
                list(dict.fromkeys([*wanted, *made]))
            )
            for _, frame in tables.batches()
        )
    rows = pl.DataFrame(
        [
            *_keys(raw, list(settings.keys.values()), null_values),
            *(raw[name].alias(settings.prefix + name) for name in made),
        ]
    ).with_columns(pl.lit(True).alias(settings.matched or MATCHED))
    table = SideTable(settings, rows)
    unique = table.keys
    if settings.time is not None:
        rows = rows.with_columns(_times(raw, settings.time, null_values).alias(SINCE))
        lost = rows[SINCE].null_count()
        if lost:
            raise InputError(
                f"{files[0]}: {lost:,} rows have no time in {settings.time.column!r}, so it is "
                f"unknown from when they are valid; add times or leave them out"
            )
        unique = [*unique, SINCE]
    rows = rows.drop_nulls(table.keys)
    repeated = rows.filter(rows.select(unique).is_duplicated())
    if repeated.height:
        key = ", ".join(
            f"{name} {value!r}"
            for name, value in zip(
                settings.keys.values(), repeated.select(table.keys).row(0), strict=True
            )
        )
        what = "keys have" if settings.time is None else "keys and times have"
        hint = (
            "; leave one, or give 'time', the column that says from when a row is valid"
            if settings.time is None
            else "; leave one"
        )
        raise InputError(
            f"{files[0]}: {repeated.select(unique).unique().height:,} {what} more than one row, "
            f"for example {key}{hint}"
        )
    return SideTable(settings, rows if settings.time is None else rows.sort(SINCE))


def _keys(frame: pl.DataFrame, names: Sequence[str], null_values: Sequence[str]) -> list[pl.Series]:
    """One spelling per key, whatever its type: 1, 1.0 and "1" are the same."""
    return [
        canonical_text(category_text(frame[name]), null_values).alias(f"{KEY}{index}")
        for index, name in enumerate(names)
    ]


def _times(frame: pl.DataFrame, time: MomentSettings, null_values: Sequence[str]) -> pl.Series:
    column = frame[time.column]
    if column.dtype == pl.String:
        text = pl.col(column.name).str.strip_chars()
        known = ~text.is_in([*null_values, ""])
        column = frame.select(pl.when(known).then(text).alias(column.name))[column.name]
    return whole_times(column, time)


def with_joined(
    frame: pl.DataFrame,
    tables: Sequence[SideTable],
    time: MomentSettings | None,
    null_values: Sequence[str],
) -> pl.DataFrame:
    """``frame``, a block of a log, with each side table's columns from the row with its key, or
    missing values if there is none.

    A side table with times gives the newest row whose time is not after the event's.

    Args:
        time: column of event times; not read if ``frame`` already has ``own:event_time``.
    """
    for table in tables:
        keyed = pl.DataFrame(_keys(frame, list(table.settings.keys), null_values))
        if table.settings.time is None:
            found = keyed.join(table.rows, on=table.keys, how="left", maintain_order="left")
        else:
            if EVENT_TIME in frame.columns:
                moment = frame[EVENT_TIME]
            else:
                assert time is not None  # checked by TableSettings
                moment = _times(frame, time, null_values)
            found = _as_of(keyed, moment, table)
        named = table.settings.matched
        found = found.drop(*table.keys, SINCE, *([] if named else [MATCHED]), strict=False)
        if named:
            found = found.with_columns(pl.col(named).fill_null(False))
        frame = frame.hstack(found)
    return frame


def _as_of(keyed: pl.DataFrame, moment: pl.Series, table: SideTable) -> pl.DataFrame:
    """For each key of ``keyed`` [N], in order, the newest row that is valid at ``moment`` [N]."""
    placed = keyed.with_columns(moment.alias(EVENT_TIME)).with_row_index(PLACE)
    found = (
        placed.drop_nulls(EVENT_TIME)
        .sort(EVENT_TIME)
        .join_asof(
            table.rows,
            left_on=EVENT_TIME,
            right_on=SINCE,
            by=table.keys,
            strategy="backward",
            check_sortedness=False,
        )
        .drop(*table.keys, EVENT_TIME)
    )
    return placed.select(PLACE).join(found, on=PLACE, how="left", maintain_order="left").drop(PLACE)
