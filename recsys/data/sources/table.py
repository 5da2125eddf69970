"""Any CSV, TSV or Parquet log that a YAML file describes column by column."""

import difflib
from pathlib import Path

import polars as pl

from recsys.config import InputError
from recsys.data.encoding import hash_text, hash_to_rows, signed_log1p
from recsys.data.schema import MAIN_TASK, CategoricalFeature, task_columns
from recsys.data.settings import TableSettings, TimeSettings
from recsys.data.sources.base import Chunk, Source
from recsys.data.sources.counters import add_counters
from recsys.data.sources.files import resolve_files
from recsys.data.sources.history import add_history
from recsys.data.sources.labels import explode_impressions, sample_negatives
from recsys.units import MS_PER_SECOND

ROW, TIME, LABEL_TIME, LABEL = "row", "event_time", "label_time", "label"
DERIVED = ["event_hour", "shown_count"]
PER_MILLISECOND = {"s": 1000.0, "ms": 1.0, "us": 0.001}
CONTENT_CHARACTERS = 80


def table_source(settings: TableSettings, root: Path) -> Source:
    """The described log as a source.

    Raises:
        InputError: a file is missing or unreadable, or a column is not there (the message names the
            nearest).
    """
    raw = _read(settings, root)
    _check_columns(settings, raw.columns)
    _check_history_name(settings, raw.columns)
    frame, bad = _parse(raw, settings)
    if settings.explode is not None:
        frame = explode_impressions(frame, settings.explode)
    if settings.sample_negatives is not None:
        frame = sample_negatives(frame, settings.sample_negatives)
    order = pl.int_range(pl.len(), dtype=pl.Int64).alias("example_id")
    frame = frame.sort(TIME, ROW, maintain_order=True).with_columns(order)
    frame, counters = add_counters(frame, settings.counters)
    categorical = [
        CategoricalFeature(one.column, one.table_rows, one.kind) for one in settings.categorical
    ]
    if settings.history is not None:
        frame = add_history(frame, settings.history)
        categorical.append(
            CategoricalFeature(settings.history.name, settings.history.table_rows, "list")
        )
    return Source(
        dense=settings.dense + counters,
        categorical=categorical,
        domains=_domains(settings),
        chunks=iter([Chunk(_encode(frame, settings, counters), bad)]),
        expected_rows=frame.height,
        tasks=[MAIN_TASK, *settings.labels],
    )


def _read(settings: TableSettings, root: Path) -> pl.DataFrame:
    separator = {"csv": ",", "tsv": "\t"}.get(settings.file_format)
    frames = []
    for path in resolve_files(settings.files, root):
        try:
            if separator is None:
                frames.append(pl.read_parquet(path))
            else:
                frames.append(pl.read_csv(path, separator=separator, infer_schema=False))
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path}: cannot be read as {settings.file_format}: {reason}"
            ) from error
    try:
        return pl.concat(frames).with_row_index(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"'files' differ in their columns: {str(error).splitlines()[0]}"
        ) from error


def _check_columns(settings: TableSettings, columns: list[str]) -> None:
    raw = [
        settings.time.column,
        settings.label,
        settings.domain and settings.domain.column,
        *settings.labels.values(),
    ]
    made = list(DERIVED)
    if settings.explode is not None:
        raw += [settings.explode.shown, settings.explode.clicked]
        made.append(settings.explode.item)
    if settings.sample_negatives is not None:
        raw += [settings.sample_negatives.item, settings.sample_negatives.session]
    features = [settings.group, *settings.dense, *(one.column for one in settings.categorical)]
    features += [column for counter in settings.counters for column in counter.by]
    features += [settings.history.user, settings.history.item] if settings.history else []
    for valid, wanted in ((columns, raw), (columns + made, features)):
        for name in wanted:
            if name and name not in valid:
                near = difflib.get_close_matches(name, valid, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(valid)}"
                raise InputError(f"{settings.files[0]}: no column {name!r}; {hint}")


def _check_history_name(settings: TableSettings, columns: list[str]) -> None:
    if settings.history is not None and settings.history.name in columns:
        raise InputError(
            f"{settings.files[0]}: key 'table.history.name': the log has a column "
            f"{settings.history.name!r}; "
            "give the history another name"
        )


def _parse(raw: pl.DataFrame, settings: TableSettings) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with event_time, label_time, domain and (if the log has it) label; and the bad rows with
    reasons."""
    time = _time(raw.schema[settings.time.column], settings.time)
    numbers = [name for name in settings.dense if name in raw.columns]
    parsed = {name: pl.col(name).cast(pl.Float64, strict=False) for name in numbers}
    reason = pl.when(time.is_null()).then(pl.lit("missing or unparsable time"))
    for name in numbers:
        text = pl.col(name).cast(pl.String)
        wrong = text.is_not_null() & (text != "") & parsed[name].is_null()
        reason = reason.when(wrong).then(pl.lit(f"unparsable number in {name}"))
    label: list[pl.Expr] = []
    if settings.label is not None:
        value = pl.col(settings.label).cast(pl.Float64, strict=False)
        reason = reason.when(~value.is_in([0.0, 1.0]).fill_null(False)).then(
            pl.lit("label outside {0, 1}")
        )
        label = [value.cast(pl.Float32).alias(LABEL)]
    for task, column in settings.labels.items():
        text, value = (
            pl.col(column).cast(pl.String),
            pl.col(column).cast(pl.Float64, strict=False).fill_nan(None),
        )
        wrong = (
            text.is_not_null()
            & ~text.is_in(["", "NaN"])
            & ~value.is_in([0.0, 1.0]).fill_null(False)
        )
        reason = reason.when(wrong).then(pl.lit(f"label of {task} outside {{0, 1}}"))
        label.append(value.cast(pl.Float32).alias(f"{LABEL}_{task}"))
    domain = _domain(settings)
    reason = reason.when(domain.is_null()).then(pl.lit("unknown domain"))
    marked = raw.with_columns(reason.alias("reason"))
    is_bad = pl.col("reason").is_not_null()
    content = pl.struct(
        settings.time.column, *([settings.label] if settings.label else []), *numbers
    )
    bad = marked.filter(is_bad).select(
        ROW,
        "reason",
        content.struct.json_encode().str.slice(0, CONTENT_CHARACTERS).alias("content"),
    )
    delay_ms = round(settings.time.label_delay_s * MS_PER_SECOND)
    good = (
        marked.filter(~is_bad)
        .drop("reason")
        .with_columns(
            time.alias(TIME),
            (time + delay_ms).alias(LABEL_TIME),
            domain.alias("domain_index"),
            *label,
            (time // (3600 * MS_PER_SECOND) % 24).alias(DERIVED[0]),
            *(parsed[name].alias(name) for name in numbers),
        )
    )
    return good, bad


def _time(dtype: pl.DataType, settings: TimeSettings) -> pl.Expr:
    """Int64 ms since the epoch; null where it cannot be told."""
    column = pl.col(settings.column)
    if settings.unit != "datetime":
        number = column.cast(pl.Int64 if dtype.is_integer() else pl.Float64, strict=False)
        return (number * PER_MILLISECOND[settings.unit]).floor().cast(pl.Int64, strict=False)
    moment = (
        column.str.to_datetime(strict=False, time_unit="ms")
        if dtype == pl.String
        else column.cast(pl.Datetime("ms"))
    )
    return moment.dt.epoch("ms")


def _domains(settings: TableSettings) -> list[str]:
    if settings.domain is None:
        return ["all"]
    names = list(settings.domain.values.values()) + (
        [settings.domain.other] if settings.domain.other else []
    )
    return list(dict.fromkeys(names))


def _domain(settings: TableSettings) -> pl.Expr:
    """Int32 index of the row's domain; null if its value is not listed."""
    if settings.domain is None:
        return pl.lit(0, dtype=pl.Int32)
    names = _domains(settings)
    index = {value: names.index(name) for value, name in settings.domain.values.items()}
    other = names.index(settings.domain.other) if settings.domain.other else None
    text = pl.col(settings.domain.column).cast(pl.String)
    return text.replace_strict(index, default=other, return_dtype=pl.Int32)


def _encode(frame: pl.DataFrame, settings: TableSettings, counters: list[str]) -> pl.DataFrame:
    group = frame[ROW] if settings.group is None else _group(frame[settings.group])
    return frame.select(
        "example_id",
        TIME,
        LABEL_TIME,
        pl.col("domain_index").alias("domain"),
        group.alias("group"),
        *task_columns(LABEL, [MAIN_TASK, *settings.labels]),
        *(signed_log1p(name) for name in settings.dense),
        *(pl.col(name).cast(pl.Float32) for name in counters),
        *(
            hash_to_rows(frame[one.column], one.table_rows).alias(one.column)
            for one in settings.categorical
        ),
        *([settings.history.name] if settings.history else []),
    )


def _group(column: pl.Series) -> pl.Series:
    """Int64; integers as they are, anything else by a stable hash."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64).fill_null(-1)
    text = column.cast(pl.String).fill_null("")
    return pl.Series(column.name, hash_text(text).astype("int64"))
