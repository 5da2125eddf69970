"""Any table of clicks that a YAML file describes column by column."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from recsys.config import InputError
from recsys.data.names import EVENT_TIME, OWN
from recsys.data.schema import window_name
from recsys.data.settings import DataSettings, TableSettings
from recsys.data.sources.base import EXAMPLE, Chunk, Source
from recsys.data.sources.candidates import FOLDER, Candidates, without_labels
from recsys.data.sources.counters import CounterState, add_counters, values_by_key
from recsys.data.sources.examples import Examples, count_values, examples_of, used_columns
from recsys.data.sources.files import resolve_files
from recsys.data.sources.first_pass import Log, first_pass
from recsys.data.sources.history import HistoryState, add_history
from recsys.data.sources.joins import Joins
from recsys.data.sources.labels import NegativeState
from recsys.data.sources.reading import Tables, one_line, open_tables
from recsys.data.sources.shares import ReadShares, one_after_another
from recsys.data.sources.table_encoder import (
    CLOCK,
    SHOWN_COUNT,
    TableEncoding,
    negative_rates,
    table_domains,
    table_features,
    table_tasks,
)
from recsys.units import MS_PER_HOUR


def table_source(
    settings: TableSettings,
    data: DataSettings,
    folder: Path,
    read_shares: ReadShares = one_after_another,
) -> Source:
    """The described log as a source, in two passes.

    The first reads the files block by block, parses the rows and leaves them in ``folder``, sorted;
    where a killed call for the same log has left some there, it resumes after them.
    The second, of the chunks, takes them in event time, range by range, as many windows as ``data``
    asks for.

    Args:
        folder: for temporary files, as long as the chunks are taken.
        read_shares: reads the shares of the first pass.

    Raises:
        InputError: a file is missing or unreadable, a column is not there (the message names the
            nearest) or is not what the settings say.
    """
    files = resolve_files(settings.files, data.root, folder)
    table_features(settings)  # refuses names that stand twice before anything is read
    rates = negative_rates(settings)
    with one_line(files[0]):
        joins = Joins.of(settings, data.root, folder)
        tables = _open(settings, files, folder)
        log = first_pass(tables, joins, data, folder, read_shares)
        if settings.sample_negatives is not None and log.values:
            for examples in _all_examples(log, settings):  # only the draw says which they are
                count_values(examples.frame, settings, log.values)
        distinct = {name: values.count for name, values in log.values.items()}
        encoding = TableEncoding(settings, log.types, distinct, log.examples)
        counters = [CounterState() for _ in settings.counters]
    notes = tables.partial_columns()
    history, candidates = HistoryState(), None
    if settings.candidates is not None:
        own = replace(joins, settings=without_labels(settings))
        candidates = Candidates(
            _candidate_log(own, data, folder), settings, encoding, history, counters
        )
        candidates.check(log.types, data.quarantine_limit)
        notes += candidates.notes()
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
        chunks=_chunks(log, settings, data, encoding, counters, notes, history, candidates),
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
        has_candidates=candidates is not None,
    )


def _candidate_log(joins: Joins, data: DataSettings, folder: Path) -> Log:
    """The first pass over the table of candidates, in a folder of its own."""
    own = folder / FOLDER
    own.mkdir(exist_ok=True)
    files = resolve_files(joins.settings.files, data.root, own)
    with one_line(files[0]):
        tables = _open(joins.settings, files, own)
        return first_pass(tables, joins, data, own, one_after_another)


def _chunks(
    log: Log,
    settings: TableSettings,
    data: DataSettings,
    encoding: TableEncoding,
    counters: list[CounterState],
    notes: list[str],
    history: HistoryState,
    candidates: Candidates | None,
) -> Iterator[Chunk]:
    """The second pass; bad rows come first, and ``counters`` and ``history`` are brought up to
    date."""
    first, unseen, kept = 0, 0, len(notes)
    encoded = last = pl.DataFrame()
    window_ms = round(data.window_hours * MS_PER_HOUR)
    with one_line(log.files[0]):
        if encoding.vocabularies:
            _learn_first_window(log, settings, window_ms, encoding)
        for index, examples in enumerate(_all_examples(log, settings, data)):
            order = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(EXAMPLE)
            frame = examples.frame.with_columns(order)
            unshown = candidates.up_to(frame) if candidates is not None and frame.height else None
            frame = add_counters(frame, settings.counters, counters)
            if settings.history is not None:
                frame = add_history(
                    frame, settings.history, settings.null_values, encoding.history_use, history
                )
            last = frame.clear()
            encoded, unshown = _encoded(frame, encoding, window_ms, unshown)
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
            yield Chunk(
                encoded,
                read=examples.rows,
                dropped=examples.dropped,
                made=examples.made,
                candidates=unshown,
            )
        if candidates is not None:
            unshown = candidates.up_to(last, is_end=True)
            yield Chunk(encoded.clear(), read=0, candidates=encoding.candidates_part(unshown))


def _learn_first_window(
    log: Log, settings: TableSettings, window_ms: int, encoding: TableEncoding
) -> None:
    """Let ``encoding`` count the examples of the first window."""
    first: int | None = None
    for examples in _all_examples(log, settings):
        windows = examples.frame[EVENT_TIME] // window_ms
        first = windows[0] if first is None and len(windows) else first
        encoding.count(examples.frame.filter(windows == first))
        if len(windows) and windows[-1] != first:
            return


def _encoded(
    frame: pl.DataFrame,
    encoding: TableEncoding,
    window_ms: int,
    candidates: pl.DataFrame | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """The columns of parts for examples and candidates; window by window where that matters."""
    if not encoding.vocabularies or frame.is_empty():
        unshown = None if candidates is None else encoding.candidates_part(candidates)
        return encoding.part(frame), unshown
    parts: list[pl.DataFrame] = []
    unshown = []
    for rows, window in (frame[EVENT_TIME] // window_ms).rle().struct.unnest().iter_rows():
        name = window_name(window * window_ms)
        if candidates is not None:
            if not encoding.has_started:
                encoding.start_window(name)
            # Those before this window are of the one before it, or of none
            earlier = candidates.filter(pl.col(EVENT_TIME) < window * window_ms)
            unshown.append(encoding.candidates_part(earlier))
            candidates = candidates[earlier.height :]
        encoding.start_window(name)
        parts.append(encoding.part(frame[:rows]))
        frame = frame[rows:]
    if candidates is not None:
        unshown.append(encoding.candidates_part(candidates))
    return pl.concat(parts), pl.concat(unshown) if unshown else None


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
    used = used_columns(settings)
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


def _all_examples(
    log: Log, settings: TableSettings, data: DataSettings | None = None
) -> Iterator[Examples]:
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
        examples = _joined(examples_of(good, settings, state), log.joins)
        found += examples.frame.height
        if data is not None and data.max_windows is not None:
            window_ms = round(data.window_hours * MS_PER_HOUR)
            windows.update((examples.frame[EVENT_TIME] // window_ms).unique())
            if len(windows) > data.max_windows:
                end = sorted(windows)[data.max_windows] * window_ms
                kept = examples_of(good.filter(pl.col(EVENT_TIME) < end), settings, before)
                yield _joined(kept, log.joins)
                return
        yield examples
    if negatives is not None and not found:
        raise InputError(
            f"{negatives.where('popularity_hours')}: no click has others in the "
            f"{negatives.popularity_hours} hours before its own to draw negatives from"
        )


def _joined(examples: Examples, joins: Joins) -> Examples:
    return replace(examples, frame=joins.of_examples(examples.frame))
