"""Any table of clicks that a YAML file describes column by column."""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.collisions import DistinctValues, TableUse, auto_rows
from recsys.data.encoding import (
    canonical_text,
    category_text,
    distinct_values,
    hash_text,
    hash_to_rows,
    signed_log1p,
    value_hashes,
)
from recsys.data.names import feature_column
from recsys.data.schema import MAIN_TASK, CategoricalFeature, task_columns
from recsys.data.settings import CategoricalColumnSettings, DataSettings, TableSettings
from recsys.data.sources.base import (
    CONTENT_CHARACTERS,
    EVENT_TIME,
    EXAMPLE,
    LABEL,
    LABEL_TIME,
    OWN,
    ROW,
    Chunk,
    Source,
)
from recsys.data.sources.counters import CounterState, add_counters, counter_names
from recsys.data.sources.expressions import with_expressions
from recsys.data.sources.files import resolve_files, short_names
from recsys.data.sources.history import HISTORY, HistoryState, add_history
from recsys.data.sources.labels import (
    CLICKED,
    LabelsSeen,
    NegativeState,
    binary_labels,
    explode_impressions,
    impression_lists,
    sample_negatives,
)
from recsys.data.sources.reading import Tables, open_tables
from recsys.data.sources.runs import BadRows, SortedRuns
from recsys.data.sources.times import TimesSeen, event_times
from recsys.progress import RowProgress
from recsys.units import MS_PER_HOUR, MS_PER_SECOND

EVENT_HOUR, SHOWN_COUNT = "event_hour", "shown_count"  # made where a feature asks for them
HOURS_PER_DAY = 24
# Of memory_gb, for the raw values of a block and for those of a range; what is made of them on the
# way takes the rest
BLOCK_SHARE, RANGE_SHARE = 1 / 20, 1 / 12
ENCODED_BYTES, ENTRY_BYTES = 8, 16  # of a value
DOMAIN, REASON = f"{OWN}domain", f"{OWN}reason"
NUMBER = f"{OWN}number:"  # and a column's name: its values as numbers


def table_source(settings: TableSettings, data: DataSettings, folder: Path) -> Source:
    """The described log as a source, in two passes.

    The first reads the files block by block, parses the rows and leaves them in ``folder``, sorted.
    The second, of the chunks, takes them in event time, range by range, as many windows as ``data``
    asks for.

    Args:
        folder: an empty one for temporary files, as long as the chunks are taken.

    Raises:
        InputError: a file is missing or unreadable, a column is not there (the message names the
            nearest) or is not what the settings say.
    """
    files = resolve_files(settings.files, Path(data.root))
    features = _feature_names(settings)
    memory = data.memory_gb * 2**30
    with _one_line(files[0]):
        log = _parsed_log(_open(settings, files, folder), settings, folder, memory)
        settings = _with_table_rows(log, settings)
        tables = _tables(_examples(log.runs.empty, settings, NegativeState()).frame, settings)
    notes: list[str] = []
    one_each = settings.explode is None and settings.sample_negatives is None
    count = len(settings.dense) + sum(len(counter_names(one)) for one in settings.counters)
    return Source(
        dense=features[:count],
        categorical=[one.feature for one in tables],
        domains=_domains(settings),
        chunks=_chunks(log, settings, data, features, tables, notes),
        expected_rows=log.runs.rows if one_each and data.max_windows is None else 0,
        tasks=_tasks(settings),
        files=files,
        uses=[one.use for one in tables],
        notes=notes,
        rows_left=lambda: log.rows_left,
    )


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:300]}") from error


@dataclass
class _Log:
    """What the first pass found: good rows, bad rows and, where ``table_rows`` is auto, values.

    ``range_rows`` go into a range of the second pass; ``rows_left`` are good rows that it has not
    come to.
    """

    files: list[Path]
    runs: SortedRuns
    bad: BadRows
    read: int
    filtered: int
    values: dict[str, DistinctValues]
    range_rows: int
    rows_left: int


@dataclass
class _Seen:
    """What only the whole log decides, block after block."""

    time: TimesSeen = field(default_factory=TimesSeen)
    label_time: TimesSeen = field(default_factory=TimesSeen)
    labels: defaultdict[str, LabelsSeen] = field(default_factory=lambda: defaultdict(LabelsSeen))


def _parsed_log(tables: Tables, settings: TableSettings, folder: Path, memory: float) -> _Log:
    """The first pass, and again where a label's first 0 came after rows of -1."""
    zeros: list[str] = []
    while True:
        seen = _Seen()
        for task in zeros:
            seen.labels[task].zero = True
        attempt = folder / f"rows-{len(zeros)}"
        attempt.mkdir()
        log = _first_pass(tables, settings, seen, attempt, memory)
        again = [task for task, one in seen.labels.items() if one.zero and one.negative]
        if not again:
            seen.time.check(settings.time)
            if settings.label_time is not None:
                seen.label_time.check(settings.label_time)
            return log
        zeros += again
        shutil.rmtree(attempt)


def _first_pass(
    tables: Tables, settings: TableSettings, seen: _Seen, folder: Path, memory: float
) -> _Log:
    runs, bad = SortedRuns(folder), BadRows(folder)
    values = _counted(settings)
    file_rows = np.zeros(len(tables.files), dtype=np.int64)
    used = _used(settings)
    read = kept = 0
    row_bytes = 0.0
    with RowProgress("read", tables.rows()) as progress:
        for block in _blocks(tables, memory * BLOCK_SHARE, file_rows):
            raw = _filtered(block, settings, read)
            starts = np.cumsum(file_rows) - file_rows
            parsed = _parse(raw, settings, tables.files, starts, seen)
            if any(one.zero and one.negative for one in seen.labels.values()):
                break
            read, kept = read + block.height, kept + raw.height
            bad.add(parsed.bad)
            good = parsed.good.select(
                name for name in parsed.good.columns if name.startswith(OWN) or name in used
            )
            runs.add(good)
            examples = good
            if settings.explode is not None:
                examples = _examples(good, settings, NegativeState()).frame
            row_bytes += _bytes(examples) + ENCODED_BYTES * examples.height * len(used)
            if settings.sample_negatives is None:
                _count(examples, settings, values)
            progress.advance(block.height)
    per_row = row_bytes / max(runs.rows, 1)
    if settings.sample_negatives is not None:
        per_row *= 1 + settings.sample_negatives.per_click
    range_rows = max(1, int(memory * RANGE_SHARE / max(per_row, 1.0)))
    return _Log(tables.files, runs, bad, read, read - kept, values, range_rows, runs.rows)


def _blocks(
    tables: Tables, block_bytes: float, file_rows: NDArray[np.int64]
) -> Iterator[pl.DataFrame]:
    """The rows of all files, about ``block_bytes`` at a time; ``file_rows`` counts those of each
    file that have been taken."""
    block: list[pl.DataFrame] = []
    size = 0.0
    for index, batch in tables.batches():
        file_rows[index] += batch.height
        row_bytes = max(_bytes(batch) / max(batch.height, 1), 1.0)
        for piece in batch.iter_slices(max(1, int(block_bytes / row_bytes))):
            block.append(piece)
            size += row_bytes * piece.height
            if size >= block_bytes:
                yield pl.concat(block)
                block, size = [], 0.0
    yield pl.concat(block or [pl.DataFrame(schema=tables.types)])


def _bytes(frame: pl.DataFrame) -> int:
    """Of the values in memory; polars does not count a text's or a list's own entry."""
    return int(frame.estimated_size()) + ENTRY_BYTES * frame.height * frame.width


def _counted(settings: TableSettings) -> dict[str, DistinctValues]:
    """For the features whose ``table_rows`` are auto, by name."""
    features = [one.feature for one in settings.categorical if one.table_rows == "auto"]
    history = settings.history
    if history is not None and history.table_rows == "auto":
        features.append(history.name)
    return {name: DistinctValues() for name in features}


def _count(frame: pl.DataFrame, settings: TableSettings, values: dict[str, DistinctValues]) -> None:
    """Count the values of the examples ``frame``."""
    for one in settings.categorical:
        if one.feature in values:
            values[one.feature].add(value_hashes(_values(frame, one), settings.null_values))
    history = settings.history
    if history is not None and history.name in values:
        values[history.name].add(value_hashes(frame[history.item]))


def _with_table_rows(log: _Log, settings: TableSettings) -> TableSettings:
    """``settings`` with numbers for ``table_rows: auto``."""
    if not log.values:
        return settings
    if settings.sample_negatives is not None:  # only the draw says which clicks are examples
        for examples in _all_examples(log, settings):
            _count(examples.frame, settings, log.values)
    rows = {name: auto_rows(values.count) for name, values in log.values.items()}
    categorical = [
        one.model_copy(update={"table_rows": rows.get(one.feature, one.table_rows)})
        for one in settings.categorical
    ]
    history = settings.history
    if history is not None and history.name in rows:
        of_item = [one.table_rows for one in categorical if one.column == history.item]
        size = of_item[0] if of_item else rows[history.name]
        history = history.model_copy(update={"table_rows": size})
    return settings.model_copy(update={"categorical": categorical, "history": history})


def _chunks(
    log: _Log,
    settings: TableSettings,
    data: DataSettings,
    features: list[str],
    tables: "list[_Table]",
    notes: list[str],
) -> Iterator[Chunk]:
    """The second pass; bad rows come first."""
    counters = [CounterState() for _ in settings.counters]
    history = HistoryState()
    first, unseen = 0, 0
    with _one_line(log.files[0]):
        for index, examples in enumerate(_all_examples(log, settings, data)):
            order = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(EXAMPLE)
            frame = add_counters(examples.frame.with_columns(order), settings.counters, counters)
            if settings.history is not None:
                frame = add_history(
                    frame, settings.history, settings.null_values, tables[-1].use, history
                )
            encoded = _encode(frame, settings, features, tables)
            first += frame.height
            if index == 0:
                dropped = {"filter": log.filtered} if log.filtered else {}
                yield Chunk(encoded.clear(), read=log.read - log.runs.rows, dropped=dropped)
                for bad in log.bad.batches():
                    yield Chunk(encoded.clear(), bad, read=0)
            log.rows_left -= examples.rows
            unseen += examples.unseen_clicks
            if unseen:
                notes[:] = [
                    f"{unseen:,} clicked items were not among those shown; they give no example"
                ]
            yield Chunk(encoded, read=examples.rows, dropped=examples.dropped, made=examples.made)


def _tasks(settings: TableSettings) -> list[str]:
    return [MAIN_TASK, *settings.labels]


def _feature_names(settings: TableSettings) -> list[str]:
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
    return [feature_column(name, _tasks(settings)) for name in first]


def _used(settings: TableSettings) -> list[str]:
    """Columns that examples are made of beside time, label and domain."""
    negatives, history = settings.sample_negatives, settings.history
    used = [settings.group] if settings.group is not None else []
    used += [*settings.dense, *(one.column for one in settings.categorical)]
    used += [column for counter in settings.counters for column in counter.by]
    used += [history.user, history.item] if history is not None else []
    return used + ([negatives.item, negatives.session] if negatives is not None else [])


def _open(settings: TableSettings, files: list[Path], folder: Path) -> Tables:
    """The used columns of the files.

    Raises:
        InputError: see :func:`open_tables`; or a name is taken.
    """
    explode = settings.explode
    raw = [settings.time.column, *(one.column for one in settings.label_columns.values())]
    made = [EVENT_HOUR]
    if settings.domain is not None:
        raw.append(settings.domain.column)
    if settings.label_time is not None:
        raw.append(settings.label_time.column)
    if explode is not None:
        raw += [explode.shown] + ([explode.clicked] if explode.clicked is not None else [])
        made += [SHOWN_COUNT, explode.item]
    used = _used(settings)
    taken = next((n for n in [*raw, *used, *settings.columns] if n.startswith(OWN)), None)
    if taken is not None:
        raise InputError(f"{files[0]}: column {taken!r}: names that start with {OWN!r} are taken")
    wanted = raw + [name for name in used if name not in made]
    wanted = [name for name in wanted if name not in settings.columns]
    expressions = " ".join([*settings.columns.values(), settings.filter or ""])
    named = {*(name for name in made if name in used), *settings.columns}
    item = explode.item if explode is not None else None
    tables = open_tables(
        files,
        settings.file_format,
        wanted,
        lambda name: name in named or name == item or (name != "" and name in expressions),
        settings.quotes,
        folder,
    )
    columns = tables.types
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
    return tables


def _filtered(raw: pl.DataFrame, settings: TableSettings, first: int) -> pl.DataFrame:
    """``raw``, the rows from ``first`` on, with ``own:row`` and the derived columns, less the rows
    that are filtered out."""
    rows = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(ROW)
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
    raw: pl.DataFrame,
    settings: TableSettings,
    files: list[Path],
    starts: NDArray[np.int64],
    seen: _Seen,
) -> _Parsed:
    domain = _domain(raw, settings)
    numbers = [name for name in dict.fromkeys(settings.dense) if name in raw.columns]
    clean = raw.with_columns(_cleaned(raw, settings, numbers))
    time, no_time = event_times(clean[settings.time.column], settings.time, seen.time)
    reason = pl.coalesce(pl.lit(no_time), pl.lit(None, dtype=pl.String))
    parsed: dict[str, pl.Series] = {}
    for name in numbers:
        parsed[name] = _number(clean[name])
        wrong = clean[name].is_not_null() & parsed[name].is_null()
        reason = _or(reason, wrong, f"unparsable number in {name}")
    own = [time.alias(EVENT_TIME), domain.alias(DOMAIN)]
    for task, column in settings.label_columns.items():
        label, wrong = binary_labels(
            raw[column.column], column, settings.null_values, seen.labels[task]
        )
        expected = "outside {0, 1}" if column.positive is None else "is no number"
        if task == MAIN_TASK:
            reason = _or(reason, label.is_null(), f"label {expected}")
            own.append(label.alias(LABEL))
        else:
            reason = _or(reason, wrong, f"label of {task} {expected}")
            own.append(label.alias(f"{LABEL}_{task}"))
    known, wrong_time = _label_times(clean, time, settings, seen.label_time)
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
    derived: list[pl.Expr] = []
    if EVENT_HOUR not in raw.columns:
        hour = pl.col(EVENT_TIME) // MS_PER_HOUR % HOURS_PER_DAY
        derived.append(hour.alias(EVENT_HOUR))
    good = marked.with_columns(
        *derived, *(one.alias(NUMBER + name) for name, one in parsed.items())
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
    clean: pl.DataFrame, time: pl.Series, settings: TableSettings, seen: TimesSeen
) -> tuple[pl.Series, pl.Series]:
    """When each row's label is known, Int64 ms, and why it cannot be told, where it cannot."""
    default = time + round(settings.time.label_delay_s * MS_PER_SECOND)
    if settings.label_time is None:
        return default, pl.Series("reason", [None] * clean.height, dtype=pl.String)
    column = clean[settings.label_time.column]
    found, reason = event_times(column, settings.label_time, seen)
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


def _cleaned(
    raw: pl.DataFrame, settings: TableSettings, numbers: Sequence[str]
) -> Iterator[pl.Series]:
    """The text columns with null for a missing value, and one spelling of those that are keys."""
    times = [one.column for one in (settings.time, settings.label_time) if one is not None]
    for name, dtype in raw.schema.items():
        if isinstance(dtype, pl.Categorical | pl.Enum):
            yield canonical_text(raw[name].cast(pl.String), settings.null_values)
        elif dtype == pl.String and name not in (*times, *numbers):
            yield canonical_text(raw[name], settings.null_values)
        elif dtype == pl.String:
            text = pl.col(name).str.strip_chars()
            known = ~(text.is_in(settings.null_values) | (text == ""))
            yield raw.select(pl.when(known).then(text).alias(name))[name]


def _number(column: pl.Series) -> pl.Series:
    """Float64; null where it is no number."""
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise InputError(f"column {column.name!r} holds {column.dtype}, no numbers")
    return column.cast(pl.Float64, strict=False)


def _files_of(rows: pl.Series, files: list[Path], starts: NDArray[np.int64]) -> pl.Series:
    place = np.searchsorted(starts, rows.to_numpy(), side="right") - 1
    names = short_names(files)
    return pl.Series("file", [names[index] for index in place], dtype=pl.String)


def _domains(settings: TableSettings) -> list[str]:
    if settings.domain is None:
        return ["all"]
    names = list(settings.domain.values.values()) + (
        [settings.domain.other] if settings.domain.other else []
    )
    return list(dict.fromkeys(names))


def _domain(raw: pl.DataFrame, settings: TableSettings) -> pl.Series:
    """Int32 index of the row's domain; null if its value is not listed."""
    if settings.domain is None:
        return pl.Series(DOMAIN, np.zeros(raw.height, dtype=np.int32))
    names = _domains(settings)
    listed = canonical_text(pl.Series("value", list(settings.domain.values), dtype=pl.String), ())
    index = {
        value: names.index(name)
        for value, name in zip(listed, settings.domain.values.values(), strict=True)
    }
    other = names.index(settings.domain.other) if settings.domain.other else None
    text = canonical_text(category_text(raw[settings.domain.column]), ())
    return text.replace_strict(index, default=other, return_dtype=pl.Int32)


@dataclass
class _Examples:
    """Examples in event time, of ``rows`` rows of the log; how many rows gave none, how many
    examples are more than one per row, and how many clicked items were not shown."""

    frame: pl.DataFrame
    rows: int
    dropped: dict[str, int]
    made: int
    unseen_clicks: int


def _all_examples(
    log: _Log, settings: TableSettings, data: DataSettings | None = None
) -> Iterator[_Examples]:
    """The examples of the log, or of as many windows of it as ``data`` asks for, range by range.

    Raises:
        InputError: negatives are to be sampled, and no click has an earlier one to draw from.
    """
    negatives, state = settings.sample_negatives, NegativeState()
    whole_ms = 1 if negatives is None else MS_PER_HOUR  # what an hour's draws need
    found = 0
    windows: set[int] = set()
    for good in log.runs.ranges(log.range_rows, whole_ms):
        before = replace(state)
        examples = _examples(good, settings, state)
        found += examples.frame.height
        if data is not None and data.max_windows is not None:
            window_ms = round(data.window_hours * MS_PER_HOUR)
            windows.update((examples.frame[EVENT_TIME] // window_ms).unique())
            if len(windows) > data.max_windows:
                end = sorted(windows)[data.max_windows] * window_ms
                yield _examples(good.filter(pl.col(EVENT_TIME) < end), settings, before)
                return
        yield examples
    if negatives is not None and not found:
        raise InputError(
            f"{negatives.where('popularity_hours')}: no click has others in the "
            f"{negatives.popularity_hours} hours before its own to draw negatives from"
        )


def _examples(good: pl.DataFrame, settings: TableSettings, state: NegativeState) -> _Examples:
    frame, rule, unseen = good, "", 0
    if settings.explode is not None:
        count = None if SHOWN_COUNT in good.columns else SHOWN_COUNT
        frame, rule = explode_impressions(good, settings.explode, count), "nothing shown"
        clicked = good[CLICKED].list.drop_nulls().list.n_unique().fill_null(0).sum()
        unseen = round(clicked) - round(frame[LABEL].cast(pl.Float64).sum())
    if settings.sample_negatives is not None:
        frame = sample_negatives(frame, settings.sample_negatives, state)
        rule = "no clicks before it to draw negatives from"
    kept = frame[ROW].n_unique()
    dropped = {rule: good.height - kept} if good.height > kept else {}
    frame = frame.sort(EVENT_TIME, ROW, maintain_order=True)
    return _Examples(frame, good.height, dropped, frame.height - kept, unseen)


@dataclass
class _Table:
    """A categorical feature, what it is made of (None: the history) and the use of its table."""

    feature: CategoricalFeature
    column: CategoricalColumnSettings | None
    use: TableUse


def _tables(frame: pl.DataFrame, settings: TableSettings) -> list[_Table]:
    tables: list[_Table] = []
    for one in settings.categorical:
        _check_kind(frame.schema[one.column], one)
        rows = one.table_rows
        if rows == "auto":
            rows = auto_rows(distinct_values(_values(frame, one), settings.null_values))
        name = feature_column(one.feature, _tasks(settings))
        use = TableUse(one.feature, rows)
        tables.append(_Table(CategoricalFeature(name, rows, one.kind), one, use))
    history = settings.history
    if history is not None:
        rows = history.table_rows
        if rows == "auto":
            of_item = [t.use.table_rows for t in tables if t.column.column == history.item]  # type: ignore[union-attr]
            rows = of_item[0] if of_item else auto_rows(distinct_values(frame[history.item]))
        name = feature_column(history.name, _tasks(settings))
        use = TableUse(history.name, rows)
        tables.append(_Table(CategoricalFeature(name, rows, "list"), None, use))
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


def _encode(
    frame: pl.DataFrame, settings: TableSettings, features: list[str], tables: list[_Table]
) -> pl.DataFrame:
    tasks = _tasks(settings)
    group = frame[ROW] if settings.group is None else _group(frame[settings.group])
    counters = [name for one in settings.counters for name in counter_names(one)]
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
