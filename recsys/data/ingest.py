"""Cut a log into windows on disk: parts, manifests, schema, quarantine."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import InputError
from recsys.data.collisions import crowded, write_uses
from recsys.data.drift import Drift, WindowCounts
from recsys.data.encoding import dense_values
from recsys.data.schema import (
    CANDIDATES_DIR,
    MANIFEST_FILE,
    SCHEMA_FILE,
    WEIGHT,
    Schema,
    Window,
    task_columns,
    window_name,
)
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.base import Chunk, Source
from recsys.data.sources.criteo import criteo_source
from recsys.data.sources.files import order_shown
from recsys.data.sources.shares import ReadShares, one_after_another
from recsys.data.sources.table import table_source
from recsys.data.standardise import Moments
from recsys.data.synthetic import synthetic_source
from recsys.files import UnreachableError, file_hash
from recsys.progress import RowProgress
from recsys.units import MS_PER_HOUR

QUARANTINE_FILE = "quarantine.parquet"
QUARANTINE_TEXT = "quarantine.csv"
EXAMPLES_SHOWN = 3
PRIOR_ROWS = 20  # at the base rate of all domains, added to each domain's


@dataclass(frozen=True)
class IngestReport:
    """What ingest wrote. ``base_rate`` is the mean label, ``bytes`` the size of the parts.

    ``quarantined_by_reason`` and ``dropped`` (by rule) count rows of the log.
    """

    rows: int
    windows: int
    quarantined: int
    base_rate: float
    bytes: int
    quarantined_by_reason: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


def ingest(
    settings: DataSettings,
    dataset: DatasetSettings,
    windows_dir: Path,
    oracle_dir: Path,
    work_dir: Path | None = None,
    read_shares: ReadShares = one_after_another,
) -> IngestReport:
    """Write ``dataset`` as windows in ``windows_dir``; true probabilities, if known, in
    ``oracle_dir``.

    The folders are created if necessary. The same settings and logs give the same bytes. Warnings
    go to standard error, one per line. An error leaves the folders as they were.

    Args:
        work_dir: folder for temporary files. If this process is killed they remain, and the next
            call for the same log does not read again what this one has read of a table. None: a
            folder in ``windows_dir``, which a killed process leaves behind.
        read_shares: reads the shares of a table's first pass, of which there are several if
            ``settings.parallel_tasks`` is above 1; see :mod:`recsys.data.sources.shares`.

    Raises:
        InputError: a log is missing or wrong, has no good row, or has too many bad ones; or
            ``windows_dir`` is not empty.
    """
    if windows_dir.is_dir() and any(windows_dir.iterdir()):
        raise InputError(f"{windows_dir}: is not empty; give a new folder for the windows")
    there = {folder: folder.is_dir() for folder in (windows_dir, oracle_dir)}
    truths = set(oracle_dir.iterdir()) if there[oracle_dir] else set()
    for folder in there:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if work_dir is None:
            with TemporaryDirectory(prefix=".rows-", dir=windows_dir) as folder:
                return _ingest(
                    settings, dataset, windows_dir, oracle_dir, Path(folder), read_shares
                )
        work_dir.mkdir(parents=True, exist_ok=True)
        report = _ingest(settings, dataset, windows_dir, oracle_dir, work_dir, read_shares)
        shutil.rmtree(work_dir)
        return report
    except BaseException as error:
        is_final = isinstance(error, InputError) and not isinstance(error, UnreachableError)
        if work_dir is not None and is_final:
            shutil.rmtree(work_dir, ignore_errors=True)
        for path in [*windows_dir.iterdir(), *(set(oracle_dir.iterdir()) - truths)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for folder, existed in there.items():
            if not existed and folder.is_dir():
                shutil.rmtree(folder)
        raise


def _ingest(
    settings: DataSettings,
    dataset: DatasetSettings,
    windows_dir: Path,
    oracle_dir: Path,
    folder: Path,
    read_shares: ReadShares,
) -> IngestReport:
    balance = _Balance()
    source = open_source(settings, dataset, folder, read_shares)
    with RowProgress("ingest", source.expected_rows) as progress:
        if source.files:
            progress.note(order_shown(source.files))
        quarantine = _Quarantine(windows_dir)
        writer = _WindowWriter(source, settings, windows_dir, oracle_dir)
        candidates = _CandidateWriter(writer) if source.has_candidates else None
        for chunk in source.chunks:
            quarantine.add(chunk.bad)
            if candidates is not None and chunk.candidates is not None:
                candidates.add(chunk.candidates)
            writer.add(chunk)
            balance.add(chunk)
            progress.advance(chunk.frame.height)
            if writer.full:
                break
        writer.left_out += source.rows_left()
        balance.read += source.rows_left()
        writer.close_window()
        quarantine.close()
        quarantine.check(writer.rows, settings.quarantine_limit)
        if writer.rows == 0:
            raise InputError(f"dataset {settings.dataset!r}: no good rows; {balance.line()}")
        balance.check(writer)
        notes = [*source.notes, *quarantine.lines(balance.read), *crowded(source.uses)]
        if source.negative_rates:
            notes.append(
                "negative_rate: training and reports describe the log's rows, served "
                "probabilities all rows"
            )
        if candidates is not None:
            notes.append(candidates.close())
        for note in [*notes, *writer.drift.notes, *writer.drift.unknown_lines()]:
            progress.note(note)
        if source.files:
            progress.note(balance.line())
    encoder = source.encoder()
    encoder.save(windows_dir)
    if source.uses:
        write_uses(source.uses, windows_dir)
    rates = _first_rates(
        windows_dir / writer.done[0].window.name, source.tasks, len(source.domains), source.weighted
    )
    schema = Schema(
        dataset=settings.dataset,
        dense=source.dense,
        categorical=source.categorical,
        domains=source.domains,
        windows=[done.window for done in writer.done],
        initial_base_rate=rates.by_task[0],
        planted_groups=source.planted_groups,
        tasks=source.tasks,
        further_base_rates=rates.by_task[1:],
        domain_base_rates=rates.by_domain,
        dense_half_life_windows=settings.dense_half_life_windows,
        dense_clip=settings.dense_clip,
        negative_rates=source.negative_rates,
        mean_weight=rates.mean_weight,
    )
    schema.save(windows_dir)
    _write_manifests(writer.done, encoder.hash, windows_dir)
    if candidates is not None:
        own = replace(schema, windows=[done.window for done in candidates.done])
        own.save(candidates.folder)
        _write_manifests(candidates.done, encoder.hash, candidates.folder)
    clicks = sum(done.clicks for done in writer.done)
    size = sum(path.stat().st_size for path in windows_dir.glob("*/part-*.parquet"))
    return IngestReport(
        writer.rows,
        len(writer.done),
        quarantine.rows,
        clicks / writer.rows,
        size,
        dict(quarantine.reasons),
        balance.dropped,
    )


@dataclass
class _Balance:
    """Checks that each row read is written, quarantined, or dropped by a named rule."""

    read: int = 0
    made: int = 0
    examples: int = 0
    quarantined: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> None:
        """Count ``chunk``."""
        self.read += chunk.frame.height if chunk.read is None else chunk.read
        self.made += chunk.made
        self.examples += chunk.frame.height
        self.quarantined += chunk.bad.height
        for rule, rows in chunk.dropped.items():
            self.dropped[rule] = self.dropped.get(rule, 0) + rows

    def check(self, writer: "_WindowWriter") -> None:
        """Check that no row was lost on the way to the ``writer``."""
        if writer.left_out:
            self.dropped["after max_windows"] = writer.left_out
        gone = sum(self.dropped.values())
        assert self.read + self.made == writer.rows + self.quarantined + gone, self
        self.examples = writer.rows

    def line(self) -> str:
        """The balance in words."""
        out = [f"{self.examples:,} examples"]
        if self.made:
            out[0] += f" ({self.made:,} beyond one per row)"
        out += [f"{self.quarantined:,} quarantined"] if self.quarantined else []
        out += [f"{rows:,} dropped ({rule})" for rule, rows in self.dropped.items()]
        return f"{self.read:,} rows read: {', '.join(out)}"


@dataclass
class _FirstRates:
    """Weighted mean labels of the first window, per task and, for the main task, per domain; and
    the mean weight, if rows have weights."""

    by_task: list[float]
    by_domain: list[float]
    mean_weight: float | None


def _first_rates(window_dir: Path, tasks: list[str], domains: int, weighted: bool) -> _FirstRates:
    """The rates of a window. A further task without known labels gets the main task's rate, and a
    domain with few rows is smoothed towards the rate of all."""
    labels = task_columns("label", tasks)
    own = [WEIGHT] if weighted else []
    parts = pl.scan_parquet(window_dir / "part-*.parquet")
    columns = parts.select("domain", *own, *labels).collect()
    weight = columns[WEIGHT].cast(pl.Float64) if weighted else pl.ones(columns.height, eager=True)
    rates = []
    for name in labels:
        known = columns[name].is_not_null()
        total = float(weight.filter(known).sum())
        hits = float((weight * columns[name].cast(pl.Float64)).sum())
        rates.append(hits / total if total else rates[0])
    domain, each = columns["domain"].to_numpy(), weight.to_numpy()
    mean_weight = float(each.mean()) if weighted else None
    each = each / (mean_weight or 1.0)
    rows = np.bincount(domain, each, domains)
    clicks = np.bincount(domain, each * columns["label"].to_numpy(), domains)
    by_domain = (clicks + PRIOR_ROWS * rates[0]) / (rows + PRIOR_ROWS)
    return _FirstRates(rates, by_domain.tolist(), mean_weight)


def open_source(
    settings: DataSettings,
    dataset: DatasetSettings,
    folder: Path,
    read_shares: ReadShares = one_after_another,
) -> Source:
    """The source that ``dataset`` describes; relative paths are under ``settings.root``.

    ``folder`` holds temporary files until all chunks have been read.
    """
    if dataset.synthetic is not None and dataset.format == "synthetic":
        source = synthetic_source(dataset.synthetic, settings.window_hours)
        source.chunks = map(_truth_apart, source.chunks)
        return source
    if dataset.criteo is not None and dataset.format == "criteo":
        return criteo_source(dataset.criteo, settings.root, folder)
    assert dataset.table is not None  # checked by DatasetSettings
    return table_source(dataset.table, settings, folder, read_shares)


def _truth_apart(chunk: Chunk) -> Chunk:
    """Split the true probabilities off a chunk of the generated stream, the only source that knows
    them."""
    known = [name for name in chunk.frame.columns if name.startswith("probability")]
    return replace(chunk, frame=chunk.frame.drop(known), truth=chunk.frame.select(known))


@dataclass
class _Done:
    """A written window."""

    window: Window
    quarantined: int
    clicks: float = 0.0
    statistics: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)  # file name -> sha256


class _WindowWriter:
    """Splits chunks at window borders and writes parts; holds at most one part and one chunk."""

    def __init__(
        self, source: Source, settings: DataSettings, windows_dir: Path, oracle_dir: Path
    ) -> None:
        self.windows_dir, self.oracle_dir = windows_dir, oracle_dir
        self.window_ms = round(settings.window_hours * MS_PER_HOUR)
        self.max_windows, self.rows_per_part = settings.max_windows, settings.rows_per_part
        self.origin_ms = source.origin_ms % self.window_ms
        names = [
            "example_id",
            "event_time",
            "label_time",
            "domain",
            "group",
            *([WEIGHT] if source.weighted else []),
            *task_columns("label", source.tasks),
        ]
        self.dense, self.categorical = source.dense, source.categorical
        self.vocabularies, self.drift = source.vocabularies, Drift(settings.drift)
        self.columns = names + source.dense + [feature.name for feature in source.categorical]
        self.done: list[_Done] = []
        self.rows = 0
        self.full = False
        self.left_out = 0
        self._start: int | None = None
        self._pending: list[pl.DataFrame] = []
        self._oracle: pq.ParquetWriter | None = None
        self._bad = 0

    def add(self, chunk: Chunk) -> None:
        """Write the chunk's examples, window by window; windows beyond the maximum are left out."""
        self._bad += chunk.bad.height
        since = chunk.frame["event_time"] - self.origin_ms
        lows = since // self.window_ms * self.window_ms + self.origin_ms
        first = 0
        for run in lows.rle().struct.unnest().iter_rows(named=True):
            rows, low = run["len"], int(run["value"])
            if self._start is not None and low != self._start:
                self.close_window()
            if self._start is None:
                if self.max_windows is not None and len(self.done) == self.max_windows:
                    self.full, self.left_out = True, chunk.frame.height - first
                    return
                self._open(low)
            truth = None if chunk.truth is None else chunk.truth[first : first + rows]
            self._take(chunk.frame[first : first + rows], truth)
            first += rows

    def _open(self, start: int) -> None:
        self._start = start
        self._delay = 0
        window = Window(window_name(start), start, start + self.window_ms, 0, 0)
        self._done = _Done(window, 0)
        # Only for the current window: its counters of distinct ids are large
        self._counts = WindowCounts(self.dense, self.categorical, self.vocabularies)
        (self.windows_dir / self._done.window.name).mkdir()

    def _take(self, piece: pl.DataFrame, truth: pl.DataFrame | None) -> None:
        delay = (piece["label_time"] - piece["event_time"]).max()
        self._delay = max(self._delay, int(delay) if isinstance(delay, int) else 0)
        if truth is not None:
            table = truth.insert_column(0, piece["example_id"]).to_arrow()
            if self._oracle is None:
                path = self.oracle_dir / f"{self._done.window.name}.parquet"
                self._oracle = pq.ParquetWriter(path, table.schema)
            self._oracle.write_table(table)
        self._pending.append(piece.select(self.columns))
        while sum(frame.height for frame in self._pending) >= self.rows_per_part:
            whole = pl.concat(self._pending)
            self._write_part(whole[: self.rows_per_part])
            self._pending = [whole[self.rows_per_part :]]

    def _write_part(self, frame: pl.DataFrame) -> None:
        name = f"part-{len(self._done.parts):05d}.parquet"
        path = self.windows_dir / self._done.window.name / name
        frame.write_parquet(
            path, compression="zstd", compression_level=1, row_group_size=self.rows_per_part
        )
        with path.open("rb") as file:
            self._done.parts[name] = hashlib.file_digest(file, "sha256").hexdigest()
        self.rows += frame.height
        self._counts.add(frame)
        window = self._done.window
        moments = Moments.of(dense_values(frame, self.dense, "F"))
        self._done.window = replace(
            window,
            rows=window.rows + frame.height,
            dense=moments if window.dense is None else window.dense.plus(moments),
        )

    def close_window(self) -> None:
        if self._start is None:
            return
        rest = pl.concat(self._pending)
        if rest.height:
            self._write_part(rest)
        if self._oracle is not None:
            self._oracle.close()
        self._done.window = replace(self._done.window, max_label_delay_ms=self._delay)
        self._done.clicks = self._counts.clicks
        self._done.statistics = self.drift.check(self._done.window.name, self._counts)
        self._done.quarantined, self._bad = self._bad, 0
        self.done.append(self._done)
        self._start, self._pending, self._oracle = None, [], None


class _CandidateWriter:
    """Writes candidates as parts of the log's windows, in a windows folder of their own; holds at
    most one part and one chunk."""

    def __init__(self, writer: _WindowWriter) -> None:
        self.folder = writer.windows_dir / CANDIDATES_DIR
        self.done: list[_Done] = []
        self._log = writer
        self._rows: dict[str, int] = {}
        self._parts: dict[str, dict[str, str]] = {}
        self._pending = pl.DataFrame()
        self._name = ""
        self.folder.mkdir()

    def add(self, frame: pl.DataFrame) -> None:
        """Write candidates in event time."""
        log = self._log
        since = frame["event_time"] - log.origin_ms
        lows = since // log.window_ms * log.window_ms + log.origin_ms
        for rows, low in lows.rle().struct.unnest().iter_rows():
            if window_name(low) != self._name:
                self._write()
                self._name = window_name(low)
            self._pending = pl.concat([self._pending, frame[:rows].select(log.columns)])
            frame = frame[rows:]
            while self._pending.height >= log.rows_per_part:
                self._write(log.rows_per_part)

    def _write(self, rows: int | None = None) -> None:
        part = self._pending.head(rows) if rows is not None else self._pending
        self._pending = self._pending[part.height :] if rows is not None else pl.DataFrame()
        if part.is_empty():
            return
        parts = self._parts.setdefault(self._name, {})
        path = self.folder / self._name / f"part-{len(parts):05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        part.write_parquet(path, compression="zstd", compression_level=1)
        parts[path.name] = file_hash(path)
        self._rows[self._name] = self._rows.get(self._name, 0) + part.height

    def close(self) -> str:
        """Take out those outside the log's windows; a line for the user."""
        self._write()
        for done in self._log.done:
            window = replace(done.window, rows=self._rows.pop(done.window.name, 0))
            (self.folder / window.name).mkdir(exist_ok=True)
            self.done.append(_Done(window, 0, parts=self._parts.pop(window.name, {})))
        for name in self._parts:
            shutil.rmtree(self.folder / name)
        kept, outside = sum(done.window.rows for done in self.done), sum(self._rows.values())
        said = f", {outside:,} left out, as they lie in no window of the log" if outside else ""
        return f"candidates: {kept:,} rows for the teacher to score{said}"


class _Quarantine:
    """Writes bad rows as they come, as Parquet and as CSV."""

    def __init__(self, windows_dir: Path) -> None:
        self.path, self.text_path = windows_dir / QUARANTINE_FILE, windows_dir / QUARANTINE_TEXT
        self.rows = 0
        self.reasons: Counter[str] = Counter()
        self._writer: pq.ParquetWriter | None = None
        self._shown: list[str] = []

    def add(self, bad: pl.DataFrame) -> None:
        """Write the rows ``bad``."""
        if bad.height == 0:
            return
        self.rows += bad.height
        self.reasons.update(dict(bad["reason"].value_counts().iter_rows()))
        examples = bad.select("row", "file", "reason", "content")
        for row, file, reason, content in examples.head(
            EXAMPLES_SHOWN - len(self._shown)
        ).iter_rows():
            self._shown.append(f"row {row} ({file}): {reason} ({content})")
        table: pa.Table = bad.to_arrow()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema)
        self._writer.write_table(table)
        with self.text_path.open("ab") as file:
            bad.write_csv(file, include_header=file.tell() == 0)

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()

    def check(self, good: int, limit: float) -> None:
        """Check that at most a share ``limit`` of the rows is bad.

        Raises:
            InputError: more are.
        """
        total = good + self.rows
        if self.rows > limit * total:
            examples = "; ".join(self._shown)
            raise InputError(
                f"{self.rows:,} of {total:,} rows are bad, over quarantine_limit {limit:g}, for "
                f"example {' '.join(examples.split())}"
            )

    def lines(self, read: int) -> list[str]:
        """Lines for the user about the bad ones among ``read`` rows."""
        if not self.rows:
            return []
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        return [f"{self.rows:,} of {read:,} rows are quarantined, see {QUARANTINE_TEXT}: {reasons}"]


def _write_manifests(done: list[_Done], encoder_hash: str, windows_dir: Path) -> None:
    """Write a manifest per window, with the hashes of the schema and the encoder in use."""
    schema_hash = hashlib.sha256((windows_dir / SCHEMA_FILE).read_bytes()).hexdigest()
    for one in done:
        values = {
            **asdict(one.window),
            "schema": schema_hash,
            "encoder": encoder_hash,
            "quarantined_rows": one.quarantined,
            "statistics": one.statistics,
            "parts": one.parts,
        }
        path = windows_dir / one.window.name / MANIFEST_FILE
        path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
