"""Read an unknown log: its format, a sample of its rows, and statistics over all rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.settings import LabelSettings, MomentSettings
from recsys.data.sources.files import blocks, lines, uncompressed
from recsys.data.sources.labels import binary_labels
from recsys.data.sources.times import whole_times
from recsys.scratch import scratch

BATCH_ROWS = 50_000
SAMPLE_ROWS = 100_000
HASHES = 8_192  # kept per column; larger counts of values are within about 2 %
DUPLICATES_UP_TO = 20_000_000  # rows; their hashes take 8 bytes each
CRITEO_FIELDS = 40
SEPARATORS = {"csv": ",", "tsv": "\t"}

FileFormat = Literal["csv", "tsv", "jsonl", "parquet", "arrow", "criteo"]


@dataclass(frozen=True)
class Log:
    """Files in order, and how to read them; ``quotes`` as in the table source.

    ``patterns`` are what a description calls the files; empty: their own names.
    """

    files: list[Path]
    file_format: FileFormat
    quotes: Literal["checked", "yes", "no"] = "checked"
    patterns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """A uniform ``sample`` of a log's rows in the log's order, and statistics over all ``rows``.

    ``distinct`` counts values per column, exactly up to 8,192. ``duplicates`` counts rows that
    repeat an earlier one in every column; None if there are too many rows to tell.
    """

    log: Log
    rows: int
    sample: pl.DataFrame
    distinct: dict[str, int]
    duplicates: int | None


@dataclass(frozen=True)
class Span:
    """Statistics over all rows: event times, in ms since 1970, and labels.

    ``unsorted`` counts rows earlier than the row before them, ``no_label`` rows whose label cannot
    be read. ``clicks`` and ``no_label`` are 0 if there is no label.
    """

    first_ms: int
    last_ms: int
    unsorted: int
    no_time: int
    clicks: float
    no_label: int


def open_log(files: Sequence[Path]) -> Log:
    """The log in ``files``, with its format taken from their first bytes.

    Raises:
        InputError: the files have two formats, or one that ingest does not read; the message says
            how to convert it.
    """
    formats: dict[Path, FileFormat] = {file: _format_of(file) for file in files}
    first = files[0]
    for file, found in formats.items():
        if found != formats[first]:
            raise InputError(
                f"{file}: looks like {found}, but {first} looks like {formats[first]}; describe "
                f"one at a time"
            )
    file_format: FileFormat = formats[first]
    log = Log(list(files), file_format)
    if file_format not in SEPARATORS:
        return log
    rows = sum(frame.height for file in files for frame in batches(log, file, first_column=True))
    if rows >= sum(count_lines(file) - 1 for file in files):
        return log
    # Quotes can swallow line ends; in TSV they are nearly always plain characters
    return Log(log.files, file_format, "no" if file_format == "tsv" else "yes")


def count_lines(file: Path) -> int:
    """The number of non-blank lines in a file."""
    return sum(1 for line in lines(file) if line.strip())


def _format_of(file: Path) -> FileFormat:
    if not file.is_file():
        raise InputError(f"{file}: is {'a folder; give its' if file.is_dir() else 'no'} file")
    start = next(blocks(file), b"")
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"ARROW1"):
        return "arrow"
    if start.lstrip()[:1] == b"[":
        raise InputError(
            f"{file}: contains one JSON array; write an object per line: jq -c '.[]' {file.name}"
        )
    line = next((line for line in lines(file) if line.strip()), b"").decode(errors="replace")
    if not line:
        raise InputError(f"{file}: is empty")
    if line.lstrip().startswith("{"):
        return "jsonl"
    fields = line.strip("\r\n").split("\t")
    if len(fields) == CRITEO_FIELDS and fields[0] in ("0", "1"):
        return "criteo"
    file_format: FileFormat = "tsv" if line.count("\t") >= max(line.count(","), 1) else "csv"
    names = [name.strip().strip('"') for name in line.split(SEPARATORS[file_format])]
    if len(names) == 1:
        raise InputError(
            f"{file}: its first line contains neither tabs nor commas; ingest reads CSV, TSV, JSON "
            f"lines, Parquet and Arrow"
        )
    if any(_is_number(name) for name in names) or "" in names[1:]:
        raise InputError(
            f"{file}: its first line contains values, not column names; put a line of "
            f"{len(names)} names in front"
        )
    return file_format


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def batches(
    log: Log, file: Path, columns: Sequence[str] = (), first_column: bool = False
) -> Iterator[pl.DataFrame]:
    """The rows of a file in batches, in order, with ``columns`` (None: all); CSV columns stay text.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        if log.file_format in ("parquet", "arrow"):
            scan = pl.scan_parquet if log.file_format == "parquet" else pl.scan_ipc
            yield from _collected(scan(file, glob=False), columns, first_column)
            return
        with TemporaryDirectory(dir=scratch()) as folder, uncompressed(file, Path(folder)) as text:
            if log.file_format == "jsonl":
                table = pl.scan_ndjson(text, infer_schema_length=None)
            else:
                table = pl.scan_csv(
                    text,
                    separator=SEPARATORS[log.file_format],
                    infer_schema=False,
                    quote_char=None if log.quotes == "no" else '"',
                    glob=False,
                )
            yield from _collected(table, columns, first_column)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "; convert it to UTF-8 (iconv)" if "utf-8" in reason.lower() else ""
        raise InputError(f"{file}: cannot be read as {log.file_format}: {reason}{hint}") from error


def _collected(
    table: pl.LazyFrame, columns: Sequence[str], first_column: bool
) -> Iterator[pl.DataFrame]:
    names = table.collect_schema().names()
    wanted = names[:1] if first_column else [name for name in columns or names if name in names]
    batched: Any = table.select(wanted).collect_batches(
        chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming"
    )
    for frame in batched:
        # Older writers may put the whole file into one chunk
        yield from frame.iter_slices(BATCH_ROWS)


@dataclass
class _Distinct:
    """Counts distinct hashes from the smallest ones (k minimum values, Bar-Yossef et al. 2002)."""

    smallest: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    def add(self, hashes: NDArray[np.uint64]) -> None:
        self.smallest = np.union1d(self.smallest, hashes)[:HASHES]

    def count(self) -> int:
        if len(self.smallest) < HASHES:
            return len(self.smallest)
        return round((HASHES - 1) / (float(self.smallest[-1]) / 2.0**64))


def survey(log: Log, sample_rows: int = SAMPLE_ROWS) -> Survey:
    """Read the whole ``log`` once, in bounded memory; the same log gives the same sample.

    Raises:
        InputError: a file cannot be read, or there are no rows.
    """
    kept: list[pl.DataFrame] = []
    keys: list[NDArray[np.uint64]] = []
    limit = np.uint64(2**64 - 1)
    distinct: dict[str, _Distinct] = {}
    hashes: list[NDArray[np.uint64]] = []
    rows = 0
    first: dict[str, tuple[pl.DataType, Path]] = {}
    for file in log.files:
        for frame in batches(log, file):
            _check_types(frame, file, first)
            key = _scrambled(np.arange(rows, rows + frame.height, dtype=np.uint64))
            rows += frame.height
            for column in frame:
                counter = distinct.setdefault(column.name, _Distinct())
                counter.add(column.drop_nulls().hash().unique().to_numpy())
            if rows <= DUPLICATES_UP_TO:
                hashes.append(frame.hash_rows().to_numpy())
            chosen = key <= limit
            kept.append(frame.filter(chosen))
            keys.append(key[chosen])
            if sum(map(len, keys)) > 2 * sample_rows:
                kept, keys, limit = _thinned(kept, keys, sample_rows)
    if rows == 0:
        raise InputError(f"{log.files[0]}: holds no rows")
    kept, keys, limit = _thinned(kept, keys, sample_rows)
    duplicates = None
    if rows <= DUPLICATES_UP_TO:
        duplicates = rows - len(np.unique(np.concatenate(hashes)))
    counts = {name: counter.count() for name, counter in distinct.items()}
    return Survey(log, rows, kept[0], counts, duplicates)


def _check_types(
    frame: pl.DataFrame, file: Path, first: dict[str, tuple[pl.DataType, Path]]
) -> None:
    """Refuse text in one file where another has numbers, as ingest does; ``first`` says where each
    column was first seen."""
    for name, dtype in frame.schema.items():
        if dtype == pl.Null or frame[name].null_count() == frame.height:
            continue
        before, where = first.setdefault(name, (dtype, file))
        if (before == pl.String) != (dtype == pl.String) and (
            before.is_numeric() or dtype.is_numeric()
        ):
            raise InputError(
                f"{file}: column {name!r} holds {dtype}, but {before} in {where}; give both one  "
                f"type"
            )


def _scrambled(row: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A pseudo-random number per row number (splitmix64), independent of the batches."""
    value = (row + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _thinned(
    kept: list[pl.DataFrame], keys: list[NDArray[np.uint64]], rows: int
) -> tuple[list[pl.DataFrame], list[NDArray[np.uint64]], np.uint64]:
    """The rows with the ``rows`` smallest keys, in order, and the largest of these keys."""
    frame, key = pl.concat(kept, how="diagonal_relaxed"), np.concatenate(keys)
    limit = np.uint64(2**64 - 1)
    if len(key) > rows:
        limit = np.partition(key, rows - 1)[rows - 1]
    return [frame.filter(key <= limit)], [key[key <= limit]], limit


def span_of(
    log: Log, time: MomentSettings, label: LabelSettings | None, null_values: Sequence[str]
) -> Span:
    """Read the time and label of all rows, as ingest does.

    Raises:
        InputError: a file cannot be read, or no row has a time.
    """
    first, last, latest = [], [], None
    unsorted = no_time = no_label = 0
    clicks = 0.0
    columns = [time.column] + ([label.column] if label is not None else [])
    for file in log.files:
        for batch in batches(log, file, columns):
            lacking = [name for name in columns if name not in batch.columns]
            frame = batch.with_columns(
                pl.lit(None, dtype=pl.String).alias(name) for name in lacking
            )
            found = whole_times(_text_or_null(frame[time.column], null_values), time)
            known = found.drop_nulls()
            no_time += frame.height - len(known)
            if len(known):
                steps = known.diff().drop_nulls()
                unsorted += int((steps < 0).sum()) + (latest is not None and known[0] < latest)
                latest = known[-1]
                first.append(known.min())
                last.append(known.max())
            if label is not None:
                labels, _ = binary_labels(frame[label.column], label, null_values)
                clicks += float(labels.sum() or 0)
                no_label += labels.null_count()
    if not first:
        raise InputError(f"{log.files[0]}: no time in column {time.column!r} is readable")
    return Span(min(first), max(last), unsorted, no_time, clicks, no_label)


def _text_or_null(column: pl.Series, null_values: Sequence[str]) -> pl.Series:
    if column.dtype != pl.String:
        return column
    text = pl.col(column.name).str.strip_chars()
    known = ~text.is_in([*null_values, ""])
    return column.to_frame().select(pl.when(known).then(text).alias(column.name))[column.name]
