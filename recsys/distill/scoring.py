"""The score log: every example scored once, by a teacher that knew nothing of its time."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recsys.config import InputError
from recsys.data.loader import WindowReader
from recsys.data.schema import Schema, Window
from recsys.distill import ranks
from recsys.distill.settings import AugmentSettings, TeacherSettings
from recsys.distill.snapshots import (
    SNAPSHOTS_DIR,
    WEIGHTS_DIR,
    Snapshot,
    check_no_look_ahead,
    latest_before,
    list_snapshots,
)
from recsys.distill.stream import predict, write_json
from recsys.distill.teacher import load_partition, teacher_engine
from recsys.progress import RowProgress
from recsys.towers.partition_file import Partition
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings

SCORING_FILE = "scoring.json"
MS_PER_HOUR = 3_600_000
SCORE_SCHEMA = {
    "example_id": pl.Int64,
    "logit": pl.Float32,
    "snapshot": pl.String,
    "high_water_mark": pl.Int64,
    "staleness_ms": pl.Int64,
}


@dataclass(frozen=True)
class WindowScores:
    """What one window got: its snapshot (None: no score) and the mean and largest staleness in ms."""

    window: str
    rows: int
    scored: int
    snapshot: str | None
    mean_staleness_ms: float | None
    max_staleness_ms: int | None


@dataclass(frozen=True)
class ScoreReport:
    """Totals over all windows; ``mean_staleness_ms`` is over the scored examples, None without any."""

    rows: int
    scored: int
    missing: int
    mean_staleness_ms: float | None
    windows: list[WindowScores]


def score_windows(
    windows_dir: Path,
    partition_file: Path | None,
    teacher_dir: Path,
    teacher: TeacherSettings,
    settings: AugmentSettings,
    train: TrainSettings,
    output_dir: Path,
) -> ScoreReport:
    """Score every example once with the newest snapshot allowed for its window.

    Writes <window>.parquet (a row a scored example; no rows where no snapshot is allowed) and
    scoring.json, the report.

    Raises:
        LookAheadError: a snapshot that claims to be older than what it has learnt from.
        InputError: no data or no snapshots, or the snapshots are of another model.
    """
    schema = Schema.load(windows_dir)
    partition = load_partition(partition_file, teacher.model)
    snapshots = list_snapshots(teacher_dir / SNAPSHOTS_DIR)
    if not snapshots:
        raise InputError(f"{teacher_dir / SNAPSHOTS_DIR}: no snapshots; run the teacher stage first")
    chosen = choose_snapshots(schema, snapshots)
    arguments = (windows_dir, partition, teacher_dir, chosen, teacher, settings, train, output_dir)
    report = launch(_score_rank, arguments, train)[0]
    write_json(output_dir / SCORING_FILE, asdict(report))
    return report


def choose_snapshots(schema: Schema, snapshots: list[Snapshot]) -> list[Snapshot | None]:
    """The snapshot for each window, None where there is none yet.

    Raises:
        LookAheadError: see :func:`check_no_look_ahead`.
    """
    chosen = [latest_before(snapshots, window.start_ms) for window in schema.windows]
    for snapshot, window in zip(chosen, schema.windows, strict=True):
        if snapshot is not None:
            check_no_look_ahead(snapshot, window, schema)
    return chosen


def _score_rank(
    windows_dir: Path,
    partition: Partition | None,
    teacher_dir: Path,
    chosen: list[Snapshot | None],
    teacher: TeacherSettings,
    settings: AugmentSettings,
    train: TrainSettings,
    output_dir: Path,
) -> ScoreReport | None:
    """Score on one rank; rank 0 writes and returns the report."""
    reader = WindowReader(windows_dir)
    engine = teacher_engine(reader.schema, partition, teacher, train)
    loaded: str | None = None
    results = []
    with RowProgress("augment", sum(w.rows for w in reader.windows), enabled=ranks.rank() == 0) as progress:
        for window, snapshot in zip(reader.windows, chosen, strict=True):
            if snapshot is not None and snapshot.name != loaded:
                engine.load(teacher_dir / SNAPSHOTS_DIR / snapshot.name / WEIGHTS_DIR)
                loaded = snapshot.name
            scores = score_window(engine, reader, window, snapshot, settings, progress)
            if scores is not None:
                scores.write_parquet(output_dir / f"{window.name}.parquet")
                results.append(_summary(window, scores))
    return _report(results) if ranks.rank() == 0 else None


def score_window(
    engine: Engine,
    reader: WindowReader,
    window: Window,
    snapshot: Snapshot | None,
    settings: AugmentSettings,
    progress: RowProgress,
) -> pl.DataFrame | None:
    """Score one window with ``engine``, which holds ``snapshot``; rank 0 gets the scores, others None.

    Raises:
        LookAheadError: see :func:`check_no_look_ahead`.
    """
    limit_ms = None if settings.max_staleness_hours is None else int(settings.max_staleness_hours * MS_PER_HOUR)
    if snapshot is not None:
        check_no_look_ahead(snapshot, window, reader.schema)
    if snapshot is None or (limit_ms is not None and window.start_ms - snapshot.high_water_mark > limit_ms):
        progress.advance(window.rows)
        return pl.DataFrame(schema=SCORE_SCHEMA) if ranks.rank() == 0 else None
    predictions = predict(engine, _batches(reader, window, settings), progress)
    if predictions is None:
        return None
    scores = predictions.select(
        "example_id",
        "logit",
        snapshot=pl.lit(snapshot.name),
        high_water_mark=pl.lit(snapshot.high_water_mark, dtype=pl.Int64),
        staleness_ms=pl.col("event_time") - snapshot.high_water_mark,
    ).sort("example_id")
    return scores if limit_ms is None else scores.filter(pl.col("staleness_ms") <= limit_ms)


def _batches(reader: WindowReader, window: Window, settings: AugmentSettings) -> Iterator[Any]:
    return reader.event_batches(window, settings.batch_size, ranks.rank(), ranks.world_size())


def _summary(window: Window, scores: pl.DataFrame) -> WindowScores:
    if scores.is_empty():
        return WindowScores(window.name, window.rows, 0, None, None, None)
    staleness = scores["staleness_ms"].to_numpy()
    return WindowScores(
        window=window.name,
        rows=window.rows,
        scored=scores.height,
        snapshot=scores["snapshot"][0],
        mean_staleness_ms=float(staleness.mean()),
        max_staleness_ms=int(staleness.max()),
    )


def _report(windows: list[WindowScores]) -> ScoreReport:
    rows, scored = sum(w.rows for w in windows), sum(w.scored for w in windows)
    total = sum((w.mean_staleness_ms or 0.0) * w.scored for w in windows)
    return ScoreReport(rows, scored, rows - scored, total / scored if scored else None, windows)
