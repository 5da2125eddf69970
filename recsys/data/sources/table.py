"""Any table of clicks that a YAML file describes column by column."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys.config import InputError
from recsys.data.encoder import cleaned, clock, domain_index
from recsys.data.names import EVENT_TIME, NUMBER, OWN
from recsys.data.schema import MAIN_TASK, window_name
from recsys.data.settings import DataSettings, TableSettings
from recsys.data.sources.base import (
    CONTENT_CHARACTERS,
    DOMAIN,
    EXAMPLE,
    LABEL,
    LABEL_TIME,
    ROW,
    Chunk,
    Source,
)
from recsys.data.sources.counters import add_counters
from recsys.data.sources.expressions import with_expressions
from recsys.data.sources.files import resolve_files, short_names
from recsys.data.sources.history import add_history
from recsys.data.sources.labels import (
    CLICKED,
    binary_labels,
    explode_impressions,
    impression_lists,
    sample_negatives,
)
from recsys.data.sources.reading import read_tables
from recsys.data.sources.table_encoder import (
    CLOCK,
    SHOWN_COUNT,
    TableEncoding,
    categories,
    distinct_by_feature,
    domain_encoding,
    table_domains,
    table_features,
    table_tasks,
)
from recsys.data.sources.times import event_times
from recsys.units import MS_PER_HOUR, MS_PER_SECOND

REASON = f"{OWN}reason"


def table_source(settings: TableSettings, root: Path, data: DataSettings) -> Source:
    """The described log as a source, for the windows of ``data``.

    Raises:
        InputError: a file is missing or unreadable, a column is not there (the message names the
            nearest) or is not what the settings say.
    """
    files = resolve_files(settings.files, root)
    table_features(settings)  # refuses names that stand twice before anything is read
    frames = _read(settings, files)
    read = sum(frame.height for frame in frames)
    try:
        raw = _filtered(pl.concat(frames), settings)
        starts = [0, *np.cumsum([frame.height for frame in frames[:-1]]).tolist()]
        parsed = _parse(raw, settings, files, starts)
        examples = _examples(parsed.good, settings)
        item = [] if settings.explode is None else [settings.explode.item]
        types = dict(raw.schema) | {name: examples.frame.schema[name] for name in item}
        frame = add_counters(examples.frame, settings.counters)
        distinct = distinct_by_feature(frame, settings)
        encoding = TableEncoding(settings, types, distinct, frame.height)
        if settings.history is not None:
            frame = add_history(frame, settings.history, settings.null_values, encoding.history_use)
        encoded = _encoded(frame, encoding, data)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{files[0]}: {' '.join(str(error).split())[:300]}") from error
    filtered = {"filter": read - raw.height} if read > raw.height else {}
    chunk = Chunk(
        encoded,
        parsed.bad,
        read=read,
        dropped=filtered | examples.dropped,
        made=examples.made,
    )
    return Source(
        dense=encoding.dense,
        categorical=encoding.categorical,
        domains=table_domains(settings),
        chunks=iter([chunk]),
        encoder=encoding.encoder,
        expected_rows=frame.height,
        tasks=table_tasks(settings),
        files=files,
        uses=encoding.uses,
        notes=examples.notes,
    )


def _encoded(frame: pl.DataFrame, encoding: TableEncoding, data: DataSettings) -> pl.DataFrame:
    """The columns of parts; window by window where that matters."""
    if not encoding.has_vocabularies or frame.is_empty():
        return encoding.part(frame)
    window_ms = round(data.window_hours * MS_PER_HOUR)
    parts: list[pl.DataFrame] = []
    runs = (frame[EVENT_TIME] // window_ms).rle().struct.unnest()
    for index, (rows, window) in enumerate(runs.iter_rows()):
        examples, frame = frame[:rows], frame[rows:]
        if index == 0:
            encoding.count(examples)
        if data.max_windows is None or index < data.max_windows:
            encoding.start_window(window_name(window * window_ms))
        parts.append(encoding.part(examples))
        if index and (data.max_windows is None or index < data.max_windows):
            encoding.count(examples)
    return pl.concat(parts)


def _read(settings: TableSettings, files: list[Path]) -> list[pl.DataFrame]:
    """Each file's used columns.

    Raises:
        InputError: see :func:`read_tables`; or a name is taken.
    """
    explode, negatives, history = settings.explode, settings.sample_negatives, settings.history
    raw = [settings.time.column, *(one.column for one in settings.label_columns.values())]
    made = [*CLOCK]
    if settings.domain is not None:
        raw.append(settings.domain.column)
    if settings.label_time is not None:
        raw.append(settings.label_time.column)
    if explode is not None:
        raw += [explode.shown] + ([explode.clicked] if explode.clicked is not None else [])
        made += [SHOWN_COUNT, explode.item]
    if negatives is not None:
        raw += [negatives.item, negatives.session]
    used = [settings.group] if settings.group is not None else []
    used += [*settings.dense, *(name for one in categories(settings) for name in one.columns)]
    used += [column for counter in settings.counters for column in counter.by]
    used += [history.user, history.item] if history is not None else []
    taken = next((n for n in [*raw, *used, *settings.columns] if n.startswith(OWN)), None)
    if taken is not None:
        raise InputError(f"{files[0]}: column {taken!r}: names that start with {OWN!r} are taken")
    wanted = raw + [name for name in used if name not in made]
    wanted = [name for name in wanted if name not in settings.columns]
    expressions = " ".join([*settings.columns.values(), settings.filter or ""])
    named = {*(name for name in made if name in used), *settings.columns}
    item = explode.item if explode is not None else None
    frames = read_tables(
        files,
        settings.file_format,
        wanted,
        lambda name: name in named or name == item or (name != "" and name in expressions),
        settings.quotes,
    )
    columns = frames[0].columns
    if explode is not None and item in columns and item not in (explode.shown, explode.clicked):
        raise InputError(
            f"{settings.where('explode.item')}: the log has a column {item!r} of its own; "
            f"give the item another name"
        )
    derived = next((name for name in settings.columns if name in columns), None)
    if derived is not None:
        raise InputError(
            f"{files[0]}: the log has a column {derived!r} of its own; give the one in columns "
            f"another name"
        )
    return frames


def _filtered(raw: pl.DataFrame, settings: TableSettings) -> pl.DataFrame:
    """``raw`` with ``own:row`` and the derived columns, less the rows that are filtered out."""
    rows = pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW)
    numbered = raw.with_columns(rows)
    if not settings.columns and settings.filter is None:
        return numbered
    return with_expressions(numbered, settings.columns, settings.filter, "table")


@dataclass
class _Parsed:
    """Rows with event time, label time, domain and (if the log has them) labels; and bad rows."""

    good: pl.DataFrame
    bad: pl.DataFrame


def _parse(
    raw: pl.DataFrame, settings: TableSettings, files: list[Path], starts: list[int]
) -> _Parsed:
    domain = _domain(raw, settings)
    numbers = [name for name in dict.fromkeys(settings.dense) if name in raw.columns]
    times = [one.column for one in (settings.time, settings.label_time) if one is not None]
    clean = raw.with_columns(cleaned(raw, settings.null_values, [*numbers, *times]))
    time, no_time = event_times(clean[settings.time.column], settings.time)
    reason = pl.coalesce(pl.lit(no_time), pl.lit(None, dtype=pl.String))
    parsed: dict[str, pl.Series] = {}
    for name in numbers:
        parsed[name] = _number(clean[name])
        wrong = clean[name].is_not_null() & parsed[name].is_null()
        reason = _or(reason, wrong, f"unparsable number in {name}")
    own = [time.alias(EVENT_TIME), domain.alias(DOMAIN)]
    for task, column in settings.label_columns.items():
        label, wrong = binary_labels(raw[column.column], column, settings.null_values)
        expected = "outside {0, 1}" if column.positive is None else "is no number"
        if task == MAIN_TASK:
            reason = _or(reason, label.is_null(), f"label {expected}")
            own.append(label.alias(LABEL))
        else:
            reason = _or(reason, wrong, f"label of {task} {expected}")
            own.append(label.alias(f"{LABEL}_{task}"))
    known, wrong_time = _label_times(clean, time, settings)
    own.append(known.alias(LABEL_TIME))
    reason = pl.coalesce(reason, pl.lit(wrong_time))
    if settings.explode is not None:
        clean, wrong = impression_lists(clean, settings.explode, settings.null_values)
        mark = settings.explode.label_separator
        reason = _or(reason, wrong, f"an element does not end in {mark}0 or {mark}1")
    if settings.sample_negatives is not None:
        for name in (settings.sample_negatives.item, settings.sample_negatives.session):
            reason = _or(reason, clean[name].is_null(), f"missing {name}")
    reason = _or(reason, domain.is_null(), "unknown domain")
    marked = clean.with_columns(*own, reason.alias(REASON))
    bad = marked.filter(pl.col(REASON).is_not_null())
    good = marked.with_columns(
        *clock(name for name in CLOCK if name not in raw.columns),
        *(one.alias(NUMBER + name) for name, one in parsed.items()),
    )
    good = good.filter(pl.col(REASON).is_null()).drop(REASON)
    labels = [one.column for one in settings.label_columns.values()]
    shown = dict.fromkeys([settings.time.column, *labels, *numbers])
    content = raw.filter(marked[REASON].is_not_null()).select(
        pl.struct(
            pl.col(name).cast(pl.String, strict=False) if raw.schema[name] == pl.Binary else name
            for name in shown
        ).struct.json_encode()
    )
    return _Parsed(
        good,
        pl.DataFrame(
            {
                "row": bad[ROW],
                "file": _files_of(bad[ROW], files, starts),
                "reason": bad[REASON],
                "content": content.to_series().str.slice(0, CONTENT_CHARACTERS),
            }
        ),
    )


def _label_times(
    clean: pl.DataFrame, time: pl.Series, settings: TableSettings
) -> tuple[pl.Series, pl.Series]:
    """When each row's label is known, Int64 ms, and why it cannot be told, where it cannot."""
    default = time + round(settings.time.label_delay_s * MS_PER_SECOND)
    if settings.label_time is None:
        return default, pl.Series("reason", [None] * clean.height, dtype=pl.String)
    column = clean[settings.label_time.column]
    found, reason = event_times(column, settings.label_time)
    frame = pl.DataFrame({"time": time, "found": found, "default": default, "given": column})
    frame = frame.with_columns(reason=reason)
    wrong = (
        pl.when(pl.col("given").is_null())
        .then(None)
        .when(pl.col("reason").is_not_null())
        .then("label: " + pl.col("reason"))
        .when(pl.col("found") < pl.col("time"))
        .then(pl.lit("label known before its event"))
    )
    known = pl.coalesce("found", "default")
    return frame.select(known=known)["known"], frame.select(reason=wrong)["reason"]


def _or(reason: pl.Expr, wrong: pl.Series, text: str) -> pl.Expr:
    """``reason``, and ``text`` for the rows that are wrong and have none yet."""
    return pl.coalesce(reason, pl.when(pl.lit(wrong)).then(pl.lit(text)))


def _number(column: pl.Series) -> pl.Series:
    """Float64; null where it is no number."""
    if column.dtype.is_nested() or column.dtype == pl.Binary or column.dtype.is_temporal():
        raise InputError(f"column {column.name!r} holds {column.dtype}, no numbers")
    return column.cast(pl.Float64, strict=False)


def _files_of(rows: pl.Series, files: list[Path], starts: list[int]) -> pl.Series:
    place = np.searchsorted(np.array(starts), rows.to_numpy(), side="right") - 1
    names = short_names(files)
    return pl.Series("file", [names[index] for index in place], dtype=pl.String)


def _domain(raw: pl.DataFrame, settings: TableSettings) -> pl.Series:
    """Int32 index of the row's domain; null if its value is not listed."""
    domain = domain_encoding(settings)
    if domain is None:
        return pl.Series(DOMAIN, np.zeros(raw.height, dtype=np.int32))
    return domain_index(raw[domain.column], domain, table_domains(settings))


@dataclass
class _Examples:
    """Examples in event time; how many rows gave none, and how many more than one."""

    frame: pl.DataFrame
    dropped: dict[str, int]
    made: int
    notes: list[str]


def _examples(good: pl.DataFrame, settings: TableSettings) -> _Examples:
    frame, rule, notes = good, "", list[str]()
    if settings.explode is not None:
        count = None if SHOWN_COUNT in good.columns else SHOWN_COUNT
        frame, rule = explode_impressions(good, settings.explode, count), "nothing shown"
        clicked = good[CLICKED].list.drop_nulls().list.n_unique().fill_null(0).sum()
        lost = clicked - round(frame[LABEL].cast(pl.Float64).sum())
        if lost:
            notes.append(f"{lost:,} clicked items were not among those shown; they give no example")
    if settings.sample_negatives is not None:
        frame = sample_negatives(frame, settings.sample_negatives)
        rule = "no clicks before it to draw negatives from"
    kept = frame[ROW].n_unique()
    order = pl.int_range(pl.len(), dtype=pl.Int64).alias(EXAMPLE)
    frame = frame.sort(EVENT_TIME, ROW, maintain_order=True).with_columns(order)
    dropped = {rule: good.height - kept} if good.height > kept else {}
    return _Examples(frame, dropped, frame.height - kept, notes)
