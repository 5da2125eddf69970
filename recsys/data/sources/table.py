"""Any table of clicks that a YAML file describes column by column."""

import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.collisions import DistinctValues
from recsys.data.encoder import cleaned, clock, domain_index
from recsys.data.encoding import value_hashes
from recsys.data.names import EVENT_TIME, NUMBER, OWN
from recsys.data.schema import MAIN_TASK, window_name
from recsys.data.settings import DataSettings, TableSettings
from recsys.data.sources.base import (
    CONTENT_CHARACTERS,
    DOMAIN,
    EXAMPLE,
    LABEL,
    LABEL_TIME,
    OWN_WEIGHT,
    ROW,
    Chunk,
    Source,
)
from recsys.data.sources.counters import CounterState, add_counters, values_by_key
from recsys.data.sources.expressions import with_expressions
from recsys.data.sources.files import resolve_files, short_names
from recsys.data.sources.first_pass import (
    PassState,
    labels_state,
    restored,
    times_seen,
    times_state,
)
from recsys.data.sources.history import HistoryState, add_history
from recsys.data.sources.joins import Joins
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
from recsys.data.sources.table_encoder import (
    CLOCK,
    SHOWN_COUNT,
    TableEncoding,
    categories,
    domain_encoding,
    feature_values,
    negative_rates,
    read_columns,
    table_domains,
    table_features,
    table_tasks,
)
from recsys.data.sources.times import TimesSeen, event_times, row_times
from recsys.files import fingerprint
from recsys.progress import RowProgress
from recsys.provenance import code_of
from recsys.units import MS_PER_HOUR, MS_PER_SECOND

# Of memory_gb, for the raw values of a block and for those of a range; what is made of them on the
# way takes the rest
BLOCK_SHARE, RANGE_SHARE = 1 / 20, 1 / 12
ENCODED_BYTES, ENTRY_BYTES = 8, 16  # of a value
REASON = f"{OWN}reason"


def table_source(settings: TableSettings, data: DataSettings, folder: Path) -> Source:
    """The described log as a source, in two passes.

    The first reads the files block by block, parses the rows and leaves them in ``folder``, sorted;
    where a killed call for the same log has left some there, it resumes after them.
    The second, of the chunks, takes them in event time, range by range, as many windows as ``data``
    asks for.

    Args:
        folder: for temporary files, as long as the chunks are taken.

    Raises:
        InputError: a file is missing or unreadable, a column is not there (the message names the
            nearest) or is not what the settings say.
    """
    files = resolve_files(settings.files, data.root, folder)
    table_features(settings)  # refuses names that stand twice before anything is read
    rates = negative_rates(settings)
    with _one_line(files[0]):
        joins = Joins.of(settings, data.root, folder)
        tables = _open(settings, files, folder)
        state = PassState(_fingerprint(tables, settings, data, folder))
        log = _parsed_log(tables, joins, folder, data, state)
        if settings.sample_negatives is not None and log.values:
            for examples in _all_examples(log, settings):  # only the draw says which they are
                _count(examples.frame, settings, log.values)
        distinct = {name: values.count for name, values in log.values.items()}
        encoding = TableEncoding(settings, log.types, distinct, log.examples)
        counters = [CounterState() for _ in settings.counters]
    notes = tables.partial_columns()
    if settings.label_time is not None and settings.attribution_window_s is None:
        notes.append(
            "label_time without attribution_window_s: positives and negatives become known at "
            "different times, which biases a model; set how long to wait for a positive"
        )
    one_each = settings.explode is None and settings.sample_negatives is None
    return Source(
        dense=encoding.dense,
        categorical=encoding.categorical,
        domains=table_domains(settings),
        chunks=_chunks(log, settings, data, encoding, counters, notes),
        encoder=lambda: encoding.encoder(
            [
                values_by_key(one, state, settings.null_values)
                for one, state in zip(settings.counters, counters, strict=True)
            ]
        ),
        expected_rows=log.runs.rows if one_each and data.max_windows is None else 0,
        tasks=table_tasks(settings),
        files=files,
        uses=encoding.uses,
        notes=notes,
        rows_left=lambda: log.rows_left,
        vocabularies=encoding.vocabularies,
        negative_rates=rates,
        weighted=settings.weight is not None,
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
    come to. ``types`` are those of the raw columns, the derived ones and the item of impressions;
    ``examples`` are as many as the log may have.
    """

    files: list[Path]
    runs: SortedRuns
    bad: BadRows
    read: int
    filtered: int
    values: dict[str, DistinctValues]
    range_rows: int
    rows_left: int
    types: dict[str, pl.DataType]
    examples: int
    joins: Joins


@dataclass
class _Seen:
    """What only the whole log decides, block after block."""

    time: TimesSeen = field(default_factory=TimesSeen)
    label_time: TimesSeen = field(default_factory=TimesSeen)
    labels: defaultdict[str, LabelsSeen] = field(default_factory=lambda: defaultdict(LabelsSeen))


def _fingerprint(tables: Tables, settings: TableSettings, data: DataSettings, folder: Path) -> str:
    """Of all that decides what the first pass leaves."""
    joined = [
        file for one in settings.joins for file in resolve_files(one.files, data.root, folder)
    ]
    states = [(str(file), file.stat()) for file in [*tables.files, *joined]]
    files = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    return fingerprint(files, settings.model_dump(), data.model_dump(), code_of(__name__))


def _parsed_log(
    tables: Tables, joins: Joins, folder: Path, data: DataSettings, state: PassState
) -> _Log:
    """The first pass, and again where a label's first 0 came after rows of -1."""
    settings = joins.settings
    left = restored(folder, state.fingerprint)
    if left is not None:
        state = left[1]
    while True:
        seen = _Seen()
        for name, one in state.times.items():
            setattr(seen, name, times_seen(one))
        for task, flags in state.labels.items():
            seen.labels[task] = LabelsSeen(**flags)
        for task in state.zeros:
            seen.labels[task].zero = True
        attempt = folder / f"rows-{len(state.zeros)}"
        attempt.mkdir(exist_ok=True)
        log = _first_pass(tables, joins, seen, attempt, data, state)
        again = [task for task, one in seen.labels.items() if one.zero and one.negative]
        if not again:
            if settings.time is not None:
                seen.time.check(settings.time)
            if settings.label_time is not None:
                seen.label_time.check(settings.label_time)
            return log
        state = PassState(state.fingerprint, [*state.zeros, *again])
        shutil.rmtree(attempt)


def _first_pass(
    tables: Tables,
    joins: Joins,
    seen: _Seen,
    folder: Path,
    data: DataSettings,
    state: PassState,
) -> _Log:
    settings, memory = joins.settings, data.memory_gb * 2**30
    window_ms = round(data.window_hours * MS_PER_HOUR)
    runs, bad = SortedRuns(folder), BadRows(folder)
    found = _Found(_counted(settings))
    file_rows = np.zeros(len(tables.files), dtype=np.int64)
    file_rows[: len(state.file_rows)] = state.file_rows
    used = {*_used(settings), *(key for one in joins.examples for key in one.settings.keys)}
    bad.take(state.bad, state.bad_rows)
    with RowProgress("read", tables.rows()) as progress:
        if state.read:
            progress.note(f"resumes after {state.read:,} rows that a killed run has read")
            progress.advance(state.read)
        for good in runs.take(state.runs):
            found.add(good, joins, len(used))
        for block in _blocks(tables, memory * BLOCK_SHARE, file_rows, state.read):
            raw = _filtered(joins.of_rows(block), settings, state.read)
            found.types |= raw.schema
            used.update(read_columns(settings, raw.schema))
            starts = np.cumsum(file_rows) - file_rows
            parsed = _parse(raw, settings, tables.files, starts, seen, window_ms)
            if any(one.zero and one.negative for one in seen.labels.values()):
                break
            bad.add(parsed.bad)
            good = parsed.good.select(
                name for name in parsed.good.columns if name.startswith(OWN) or name in used
            )
            runs.add(good)
            found.add(good, joins, len(used))
            state = replace(
                state,
                file_rows=file_rows.tolist(),
                read=state.read + block.height,
                kept=state.kept + raw.height,
                runs=runs.files,
                bad=bad.files,
                bad_rows=bad.rows,
                times={name: times_state(getattr(seen, name)) for name in ("time", "label_time")},
                labels=labels_state(seen.labels),
            )
            state.save(folder)
            progress.advance(block.height)
    row_bytes, count = found.row_bytes, found.examples
    per_row = row_bytes / max(runs.rows, 1)
    if settings.sample_negatives is not None:
        per_row *= 1 + settings.sample_negatives.per_click
        count *= 1 + settings.sample_negatives.per_click
    range_rows = max(1, int(memory * RANGE_SHARE / max(per_row, 1.0)))
    rows = runs.rows
    return _Log(
        tables.files,
        runs,
        bad,
        state.read,
        state.read - state.kept,
        found.values,
        range_rows,
        rows,
        found.types,
        count,
        joins,
    )


@dataclass
class _Found:
    """What the good rows tell: distinct values of features by name, types of columns, examples, and
    the bytes that they take in memory."""

    values: dict[str, DistinctValues]
    types: dict[str, pl.DataType] = field(default_factory=dict)
    examples: int = 0
    row_bytes: float = 0.0

    def add(self, good: pl.DataFrame, joins: Joins, columns: int) -> None:
        """Count the rows of a run; each has as many ``columns``."""
        settings, examples = joins.settings, good
        if settings.explode is not None:
            examples = _examples(good, settings, NegativeState()).frame
            self.types[settings.explode.item] = examples.schema[settings.explode.item]
        examples = joins.of_examples(examples)
        for one in joins.examples:
            self.types |= {name: examples.schema[name] for name in one.settings.names}
        self.examples += examples.height
        self.row_bytes += _bytes(examples) + ENCODED_BYTES * examples.height * columns
        if settings.sample_negatives is None:
            _count(examples, settings, self.values)


def _blocks(
    tables: Tables, block_bytes: float, file_rows: NDArray[np.int64], first: int
) -> Iterator[pl.DataFrame]:
    """The rows of all files from the row ``first`` on, about ``block_bytes`` at a time;
    ``file_rows`` counts those of each file that have been taken."""
    block: list[pl.DataFrame] = []
    size = 0.0
    # Of the last file that was begun it is not known whether it was read to its end
    ends = np.cumsum(file_rows)
    begun = int(np.flatnonzero(file_rows)[-1]) if first else 0
    first_file = min(int(np.searchsorted(ends, first, side="right")), begun)
    first_row = first - int(ends[first_file] - file_rows[first_file])
    file_rows[first_file] = first_row
    file_rows[first_file + 1 :] = 0
    for index, batch in tables.batches(first_file=first_file, first_row=first_row):
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
    features = [one.feature for one in categories(settings) if one.table_rows == "auto"]
    history = settings.history
    if history is not None and history.table_rows == "auto":
        features.append(history.name)
    return {name: DistinctValues() for name in features}


def _count(frame: pl.DataFrame, settings: TableSettings, values: dict[str, DistinctValues]) -> None:
    """Count the values of the examples ``frame``."""
    for one in categories(settings):
        if one.feature in values:
            found = feature_values(frame, one, settings.null_values)
            values[one.feature].add(value_hashes(found, settings.null_values))
    history = settings.history
    if history is not None and history.name in values:
        values[history.name].add(value_hashes(frame[history.item]))


def _chunks(
    log: _Log,
    settings: TableSettings,
    data: DataSettings,
    encoding: TableEncoding,
    counters: list[CounterState],
    notes: list[str],
) -> Iterator[Chunk]:
    """The second pass; bad rows come first, and ``counters`` are brought up to date."""
    history = HistoryState()
    first, unseen, kept = 0, 0, len(notes)
    window_ms = round(data.window_hours * MS_PER_HOUR)
    with _one_line(log.files[0]):
        if encoding.vocabularies:
            _learn_first_window(log, settings, window_ms, encoding)
        for index, examples in enumerate(_all_examples(log, settings, data)):
            order = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(EXAMPLE)
            frame = add_counters(examples.frame.with_columns(order), settings.counters, counters)
            if settings.history is not None:
                frame = add_history(
                    frame, settings.history, settings.null_values, encoding.history_use, history
                )
            encoded = _encoded(frame, encoding, window_ms)
            first += frame.height
            if index == 0:
                dropped = {"filter": log.filtered} if log.filtered else {}
                yield Chunk(encoded.clear(), read=log.read - log.runs.rows, dropped=dropped)
                for bad in log.bad.batches():
                    yield Chunk(encoded.clear(), bad, read=0)
            log.rows_left -= examples.rows
            unseen += examples.unseen_clicks
            if unseen:
                text = "clicked items were not among those shown; they give no example"
                notes[kept:] = [f"{unseen:,} {text}"]
            yield Chunk(encoded, read=examples.rows, dropped=examples.dropped, made=examples.made)


def _learn_first_window(
    log: _Log, settings: TableSettings, window_ms: int, encoding: TableEncoding
) -> None:
    """Let ``encoding`` count the examples of the first window."""
    first: int | None = None
    for examples in _all_examples(log, settings):
        windows = examples.frame[EVENT_TIME] // window_ms
        first = windows[0] if first is None and len(windows) else first
        encoding.count(examples.frame.filter(windows == first))
        if len(windows) and windows[-1] != first:
            return


def _encoded(frame: pl.DataFrame, encoding: TableEncoding, window_ms: int) -> pl.DataFrame:
    """The columns of parts; window by window where that matters."""
    if not encoding.vocabularies or frame.is_empty():
        return encoding.part(frame)
    parts: list[pl.DataFrame] = []
    for rows, window in (frame[EVENT_TIME] // window_ms).rle().struct.unnest().iter_rows():
        encoding.start_window(window_name(window * window_ms))
        parts.append(encoding.part(frame[:rows]))
        frame = frame[rows:]
    return pl.concat(parts)


def _used(settings: TableSettings) -> list[str]:
    """Columns that examples are made of beside time, label and domain."""
    negatives, history = settings.sample_negatives, settings.history
    used = [settings.group] if settings.group is not None else []
    used += [*settings.dense, *(name for one in categories(settings) for name in one.columns)]
    used += [column for counter in settings.counters for column in counter.by]
    used += [history.user, history.item] if history is not None else []
    return used + ([negatives.item, negatives.session] if negatives is not None else [])


def _open(settings: TableSettings, files: list[Path], folder: Path) -> Tables:
    """The used columns of the files.

    Raises:
        InputError: see :func:`open_tables`; or a name is taken.
    """
    explode = settings.explode
    raw = [one.column for one in settings.label_columns.values()]
    made: list[str] = []
    if settings.time is not None:
        raw.insert(0, settings.time.column)
        made += CLOCK
    if settings.domain is not None:
        raw.append(settings.domain.column)
    if settings.label_time is not None:
        raw.append(settings.label_time.column)
    if settings.weight is not None:
        raw.append(settings.weight)
    if explode is not None:
        raw += [explode.shown] + ([explode.clicked] if explode.clicked is not None else [])
        made += [SHOWN_COUNT, explode.item]
    used = _used(settings)
    joined = [name for one in settings.joins for name in one.names]
    raw = [name for name in raw if name not in joined]
    raw += [key for one in settings.joins for key in one.keys if key not in [*made, *joined]]
    taken = next((n for n in [*raw, *used, *joined, *settings.columns] if n.startswith(OWN)), None)
    if taken is not None:
        raise InputError(f"{files[0]}: column {taken!r}: names that start with {OWN!r} are taken")
    wanted = raw + [name for name in used if name not in [*made, *joined]]
    wanted = [name for name in wanted if name not in settings.columns]
    expressions = " ".join([*settings.columns.values(), settings.filter or ""])
    named = {*(name for name in made if name in used), *joined, *settings.columns}
    item = explode.item if explode is not None else None
    tables = open_tables(
        files,
        settings.file_format,
        wanted,
        lambda name: name in named or name == item or (name != "" and name in expressions),
        settings.quotes,
        folder,
        settings.header,
        settings.file_columns,
    )
    columns = tables.types
    if explode is not None and item in columns and item not in (explode.shown, explode.clicked):
        raise InputError(
            f"{settings.where('explode.item')}: the log has a column {item!r} of its own; "
            f"give the item another name"
        )
    given = [*settings.columns, *joined]
    derived = next((name for name in given if name in columns or given.count(name) > 1), None)
    if derived is not None:
        where, hint = "columns", "name"
        if derived in joined:
            where, hint = "joins", "prefix"
        raise InputError(
            f"{files[0]}: the log has a column {derived!r} of its own, or two have this name; give "
            f"the one in {where} another {hint}"
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
    window_ms: int,
) -> _Parsed:
    domain = _domain(raw, settings)
    numbers = [name for name in dict.fromkeys(settings.dense) if name in raw.columns]
    times = [one.column for one in (settings.time, settings.label_time) if one is not None]
    weights = [] if settings.weight is None else [settings.weight]
    parsed_columns = dict.fromkeys([*numbers, *times, *weights])
    clean = raw.with_columns(cleaned(raw, settings.null_values, [*parsed_columns]))
    reason: pl.Expr = pl.lit(None, dtype=pl.String)
    if settings.row_clock is not None:
        time = row_times(raw[ROW], settings.row_clock, window_ms)
    else:
        assert settings.time is not None  # checked by TableSettings
        time, no_time = event_times(clean[settings.time.column], settings.time, seen.time)
        reason = pl.coalesce(pl.lit(no_time), reason)
    parsed: dict[str, pl.Series] = {}
    for name in numbers:
        parsed[name] = _number(clean[name])
        wrong = clean[name].is_not_null() & parsed[name].is_null()
        reason = _or(reason, wrong, f"unparsable number in {name}")
    own = [time.alias(EVENT_TIME), domain.alias(DOMAIN)]
    known, wrong_time, late = _label_times(clean, time, settings, seen.label_time)
    for task, column in settings.label_columns.items():
        label, wrong = binary_labels(
            raw[column.column], column, settings.null_values, seen.labels[task]
        )
        expected = "outside {0, 1}" if column.positive is None else "is no number"
        if task == MAIN_TASK:
            reason = _or(reason, label.is_null(), f"label {expected}")
            if settings.attribution_window_s is not None:
                label = label.set(late & label.is_not_null(), 0.0)
            own.append(label.alias(LABEL))
        else:
            reason = _or(reason, wrong, f"label of {task} {expected}")
            own.append(label.alias(f"{LABEL}_{task}"))
    own.append(known.alias(LABEL_TIME))
    reason = pl.coalesce(reason, pl.lit(wrong_time))
    for name in weights:
        weight = _number(clean[name]).cast(pl.Float32)
        usable = (weight.is_finite() & (weight > 0)).fill_null(False)
        reason = _or(reason, ~usable, f"weight in {name} is not a number above 0")
        own.append(weight.alias(OWN_WEIGHT))
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
        *clock(name for name in CLOCK if settings.time is not None and name not in raw.columns),
        *(one.alias(NUMBER + name) for name, one in parsed.items()),
    )
    good = good.filter(pl.col(REASON).is_null()).drop(REASON)
    labels = [one.column for one in settings.label_columns.values()]
    shown = dict.fromkeys([*times[:1], *labels, *numbers, *weights])
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
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """When each row's label is known, Int64 ms, why it cannot be told, where it cannot, and whether
    a positive comes after the attribution window."""
    delay_s = 0.0 if settings.time is None else settings.time.label_delay_s
    default = time + round(delay_s * MS_PER_SECOND)
    if settings.label_time is None:
        reason = pl.Series("reason", [None] * clean.height, dtype=pl.String)
        return default, reason, pl.Series("late", [False] * clean.height, dtype=pl.Boolean)
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
    known, late = pl.coalesce("found", "default"), pl.lit(False)
    if settings.attribution_window_s is not None:
        known = pl.col("time") + round(settings.attribution_window_s * MS_PER_SECOND)
        late = (pl.col("found") > known).fill_null(False)
    told = frame.select(known=known, reason=wrong, late=late)
    return told["known"], told["reason"], told["late"]


def _or(reason: pl.Expr, wrong: pl.Series, text: str) -> pl.Expr:
    """``reason``, and ``text`` for the rows that are wrong and have none yet."""
    return pl.coalesce(reason, pl.when(pl.lit(wrong)).then(pl.lit(text)))


def _number(column: pl.Series) -> pl.Series:
    """Float64; null where it is no number."""
    if column.dtype.is_nested() or column.dtype == pl.Binary or column.dtype.is_temporal():
        raise InputError(f"column {column.name!r} holds {column.dtype}, not numbers")
    return column.cast(pl.Float64, strict=False)


def _files_of(rows: pl.Series, files: list[Path], starts: NDArray[np.int64]) -> pl.Series:
    place = np.searchsorted(starts, rows.to_numpy(), side="right") - 1
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
        examples = _joined(_examples(good, settings, state), log.joins)
        found += examples.frame.height
        if data is not None and data.max_windows is not None:
            window_ms = round(data.window_hours * MS_PER_HOUR)
            windows.update((examples.frame[EVENT_TIME] // window_ms).unique())
            if len(windows) > data.max_windows:
                end = sorted(windows)[data.max_windows] * window_ms
                kept = _examples(good.filter(pl.col(EVENT_TIME) < end), settings, before)
                yield _joined(kept, log.joins)
                return
        yield examples
    if negatives is not None and not found:
        raise InputError(
            f"{negatives.where('popularity_hours')}: no click has others in the "
            f"{negatives.popularity_hours} hours before its own to draw negatives from"
        )


def _joined(examples: _Examples, joins: Joins) -> _Examples:
    return replace(examples, frame=joins.of_examples(examples.frame))


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
