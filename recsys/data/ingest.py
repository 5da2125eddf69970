"""Cut a log into windows on disk: parts, manifests, schema, quarantine."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import InputError
from recsys.data.encoding import dense_values
from recsys.data.schema import MANIFEST_FILE, SCHEMA_FILE, Schema, Window, task_columns
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.base import Chunk, Source
from recsys.data.sources.criteo import criteo_source
from recsys.data.sources.table import table_source
from recsys.data.standardise import Moments
from recsys.data.synthetic import synthetic_source
from recsys.progress import RowProgress
from recsys.units import MS_PER_HOUR

QUARANTINE_FILE = "quarantine.parquet"
EXAMPLES_SHOWN = 3
PRIOR_ROWS = 20  # of all domains' base rate, in that of each domain


@dataclass(frozen=True)
class IngestReport:
    """What ingest wrote. ``base_rate`` is the mean label; ``bytes`` the size of the parts."""

    rows: int
    windows: int
    quarantined: int
    base_rate: float
    bytes: int


def ingest(
    settings: DataSettings, dataset: DatasetSettings, windows_dir: Path, oracle_dir: Path
) -> IngestReport:
    """Write ``dataset`` as windows in ``windows_dir``; true probabilities, if known, in
    ``oracle_dir``.

    The folders are made if need be. The same settings and logs give the same bytes.

    Raises:
        InputError: a log is missing or wrong, holds no good row, or holds too many bad ones.
    """
    # From here, since some sources read the whole log when opened
    with RowProgress("ingest", 0) as progress:
        source = open_source(settings, dataset)
        progress.expect(source.expected_rows)
        windows_dir.mkdir(parents=True, exist_ok=True)
        oracle_dir.mkdir(parents=True, exist_ok=True)
        quarantine = _Quarantine(windows_dir / QUARANTINE_FILE)
        writer = _WindowWriter(source, settings, windows_dir, oracle_dir)
        for chunk in source.chunks:
            quarantine.add(chunk.bad)
            writer.add(chunk)
            progress.advance(chunk.frame.height)
            if writer.full:
                break
    writer.close_window()
    quarantine.close()
    quarantine.check(writer.rows, settings.quarantine_limit)
    if writer.rows == 0:
        raise InputError(f"dataset {settings.dataset!r}: no good rows")
    base_rate = writer.done[0].clicks / writer.done[0].window.rows
    schema = Schema(
        dataset=settings.dataset,
        dense=source.dense,
        categorical=source.categorical,
        domains=source.domains,
        windows=[done.window for done in writer.done],
        initial_base_rate=base_rate,
        planted_groups=source.planted_groups,
        tasks=source.tasks,
        further_base_rates=_further_base_rates(
            windows_dir / writer.done[0].window.name, source.tasks, base_rate
        ),
        domain_base_rates=_domain_base_rates(
            windows_dir / writer.done[0].window.name, len(source.domains), base_rate
        ),
        dense_half_life_windows=settings.dense_half_life_windows,
        dense_clip=settings.dense_clip,
    )
    schema.save(windows_dir)
    _write_manifests(writer.done, windows_dir)
    clicks = sum(done.clicks for done in writer.done)
    size = sum(path.stat().st_size for path in windows_dir.glob("*/part-*.parquet"))
    return IngestReport(writer.rows, len(writer.done), quarantine.rows, clicks / writer.rows, size)


def _further_base_rates(window_dir: Path, tasks: list[str], main_rate: float) -> list[float]:
    """Mean known label of each task but the first in a window; ``main_rate`` where none is
    known."""
    labels = task_columns("label", tasks)[1:]
    if not labels:
        return []
    means = (
        pl.scan_parquet(window_dir / "part-*.parquet")
        .select(pl.col(labels).cast(pl.Float64).mean())
        .collect()
    )
    return [main_rate if mean is None else mean for mean in means.row(0)]


def _domain_base_rates(window_dir: Path, domains: int, base_rate: float) -> list[float]:
    """Mean label of each domain in a window; few rows lean on that of all, ``base_rate``."""
    columns = pl.scan_parquet(window_dir / "part-*.parquet").select("domain", "label").collect()
    domain = columns["domain"].to_numpy()
    rows = np.bincount(domain, minlength=domains)
    clicks = np.bincount(domain, columns["label"].to_numpy().astype(np.float64), domains)
    return ((clicks + PRIOR_ROWS * base_rate) / (rows + PRIOR_ROWS)).tolist()


def open_source(settings: DataSettings, dataset: DatasetSettings) -> Source:
    """The source that ``dataset`` describes; relative paths are under ``settings.root``."""
    root = Path(settings.root)
    if dataset.synthetic is not None and dataset.format == "synthetic":
        return synthetic_source(dataset.synthetic, settings.window_hours)
    if dataset.criteo is not None and dataset.format == "criteo":
        return criteo_source(dataset.criteo, root)
    assert dataset.table is not None  # checked by DatasetSettings
    return table_source(dataset.table, root)


@dataclass
class _Done:
    """A written window."""

    window: Window
    clicks: float
    quarantined: int
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
            *task_columns("label", source.tasks),
        ]
        self.dense = source.dense
        self.columns = names + source.dense + [feature.name for feature in source.categorical]
        self.oracle_columns = ["example_id", *task_columns("probability", source.tasks)]
        self.done: list[_Done] = []
        self.rows = 0
        self.full = False
        self._start: int | None = None
        self._pending: list[pl.DataFrame] = []
        self._oracle: pq.ParquetWriter | None = None
        self._bad = 0

    def add(self, chunk: Chunk) -> None:
        self._bad += chunk.bad.height
        if chunk.frame.height == 0:
            return
        start = (
            pl.col("event_time") - self.origin_ms
        ) // self.window_ms * self.window_ms + self.origin_ms
        frame = chunk.frame.with_columns(start.alias("window_start"))
        for piece in frame.partition_by("window_start", maintain_order=True):
            low = int(piece["window_start"][0])
            if self._start is not None and low != self._start:
                self.close_window()
            if self._start is None:
                if self.max_windows is not None and len(self.done) == self.max_windows:
                    self.full = True
                    return
                self._open(low)
            self._take(piece)

    def _open(self, start: int) -> None:
        self._start = start
        self._delay = 0
        self._done = _Done(Window(_window_name(start), start, start + self.window_ms, 0, 0), 0.0, 0)
        (self.windows_dir / self._done.window.name).mkdir()

    def _take(self, piece: pl.DataFrame) -> None:
        delay = (piece["label_time"] - piece["event_time"]).max()
        self._delay = max(self._delay, int(delay) if isinstance(delay, int) else 0)
        self._done.clicks += float(piece["label"].cast(pl.Float64).sum())
        if "probability" in piece.columns:
            table = piece.select(self.oracle_columns).to_arrow()
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
        frame.write_parquet(path, compression="zstd", row_group_size=self.rows_per_part)
        with path.open("rb") as file:
            self._done.parts[name] = hashlib.file_digest(file, "sha256").hexdigest()
        self.rows += frame.height
        window = self._done.window
        moments = Moments.of(dense_values(frame, self.dense))
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
        self._done.quarantined, self._bad = self._bad, 0
        self.done.append(self._done)
        self._start, self._pending, self._oracle = None, [], None


class _Quarantine:
    """Writes bad rows as they come."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._writer: pq.ParquetWriter | None = None
        self._shown: list[str] = []

    def add(self, bad: pl.DataFrame) -> None:
        if bad.height == 0:
            return
        self.rows += bad.height
        for row, reason, content in bad.head(EXAMPLES_SHOWN - len(self._shown)).iter_rows():
            self._shown.append(f"row {row}: {reason} ({content})")
        table: pa.Table = bad.to_arrow()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def check(self, good: int, limit: float) -> None:
        total = good + self.rows
        if self.rows > limit * total:
            examples = "; ".join(self._shown)
            raise InputError(
                f"{self.rows:,} of {total:,} rows are bad, over quarantine_limit {limit:g}, for "
                f"example {examples}"
            )


def _window_name(start_ms: int) -> str:
    return datetime.fromtimestamp(start_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H-%M")


def _write_manifests(done: list[_Done], windows_dir: Path) -> None:
    """One manifest a window; all name the hash of the schema they were written under."""
    schema_hash = hashlib.sha256((windows_dir / SCHEMA_FILE).read_bytes()).hexdigest()
    for one in done:
        values = {
            **asdict(one.window),
            "schema": schema_hash,
            "quarantined_rows": one.quarantined,
            "parts": one.parts,
        }
        path = windows_dir / one.window.name / MANIFEST_FILE
        path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
