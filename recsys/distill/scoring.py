"""Fill the score log: score every example once, with a teacher from before its time."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.config import InputError
from recsys.data.loader import WindowReader
from recsys.data.schema import MANIFEST_FILE, Schema, Window, task_columns
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.score_log import (
    SCORE_SCHEMA,
    ScoreLog,
    WindowFacts,
    domains_of,
    staleness_parts,
)
from recsys.distill.snapshots import (
    SNAPSHOTS_DIR,
    WEIGHTS_DIR,
    Snapshot,
    check_no_look_ahead,
    has_weights,
    latest_before,
    list_snapshots,
)
from recsys.distill.teacher import PLACEMENT_KEYS, load_partition, teacher_code, teacher_engine
from recsys.distill.teacher_settings import TeacherSettings
from recsys.files import file_hash, fingerprint, folder_state, write_atomically, write_json
from recsys.models.partition_file import Partition
from recsys.progress import RowProgress
from recsys.training import ranks
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings
from recsys.units import MS_PER_HOUR
from recsys.validation.progressive import predict

__all__ = ["SCORE_SCHEMA", "SCORING_FILE", "ScoreReport", "ScoringJob", "score_windows"]

SCORING_FILE = "scoring.json"
KEYS_DIR, TIMES_DIR, WHOLE_DIR = "keys", "times", "whole"


@dataclass(frozen=True)
class ScoringJob:
    """What to score, with which teacher, and where to write.

    Attributes:
        log_dir: the score log.
        work_dir: records what decided each window of the log, so that valid windows stay and a
            killed job resumes; and, in times/<window>.jsonl, when and how fast each segment was
            scored. It is separate from the log, whose bytes do not depend on the clock. None: every
            call scores everything.
        withdrawn: hashes of the weights of snapshots that may not score.
        growing: whether more windows and snapshots will come; there may be no snapshots yet.
    """

    windows_dir: Path
    partition_file: Path | None
    teacher_dir: Path
    teacher: TeacherSettings
    settings: AugmentSettings
    train: TrainSettings
    log_dir: Path
    work_dir: Path | None = None
    withdrawn: frozenset[str] = field(default_factory=frozenset)
    growing: bool = False


@dataclass(frozen=True)
class WindowPlan:
    """A window, the snapshot that scores it (None: none), and a key for everything that decides its
    records."""

    window: Window
    snapshot: Snapshot | None
    key: str


@dataclass(frozen=True)
class ScoreReport:
    """Totals over all windows; ``mean_staleness_ms`` is the mean over scored examples, None if
    there are none.

    ``staleness`` maps a bin, such as "1-2 h", to its number of examples, and ``scored_by_domain``
    does so for domains.
    """

    rows: int
    scored: int
    missing: int
    hit_rate: float
    miss_rate: float
    mean_staleness_ms: float | None
    staleness: dict[str, int]
    scored_by_domain: dict[str, int]
    windows: list[dict[str, Any]]


def score_windows(
    windows_dir: Path,
    partition_file: Path | None,
    teacher_dir: Path,
    teacher: TeacherSettings,
    settings: AugmentSettings,
    train: TrainSettings,
    output_dir: Path,
) -> ScoreReport:
    """Score every example once, with the newest snapshot allowed for its window.

    Writes the score log (see :mod:`recsys.distill.score_log`) and scoring.json, the report.

    Raises:
        LookAheadError: a snapshot claims to be older than its training data.
        InputError: there are no data or no snapshots, or the snapshots belong to another model.
    """
    job = ScoringJob(windows_dir, partition_file, teacher_dir, teacher, settings, train, output_dir)
    score_part(job, plan_scoring(job))
    return finish_scoring(job)


def plan_scoring(job: ScoringJob) -> list[WindowPlan]:
    """The windows still to be scored; removes from the log what was scored with other data,
    snapshots or settings.

    Raises:
        LookAheadError, InputError: as :func:`score_windows`.
    """
    schema = Schema.load(job.windows_dir)
    job.log_dir.mkdir(parents=True, exist_ok=True)
    log = ScoreLog(job.log_dir)
    plans = plans_of(job, schema)
    log.describe(milliseconds(job.settings.wait_hours), _used(plans))
    for name in log.windows() - {plan.window.name for plan in plans}:
        log.drop(name)
    for plan in plans:
        _drop_stale(job, log, plan)
    return [plan for plan in plans if log.window(plan.window.name) is None]


def plans_of(job: ScoringJob, schema: Schema) -> list[WindowPlan]:
    """All windows, each with the snapshot that has to score it."""
    folder = job.teacher_dir / SNAPSHOTS_DIR
    snapshots = [] if job.growing and not folder.is_dir() else list_snapshots(folder)
    if not snapshots and not job.growing:
        raise InputError(f"{folder}: no snapshots; run the teacher stage first")
    chosen = choose_snapshots(schema, [s for s in snapshots if s.weights_hash not in job.withdrawn])
    decisive = (
        teacher_code(__name__, job.teacher.model),
        load_partition(job.partition_file, job.teacher.model),
        job.settings.model_dump(
            exclude={"teacher", "external", "stack", "wait_hours", "runner", "parallel_tasks"}
        ),
        job.teacher.model.model_dump(),
        job.train.model_dump(exclude=PLACEMENT_KEYS),
    )
    common = fingerprint(*decisive)
    plans = []
    for window, snapshot in zip(schema.windows, chosen, strict=True):
        manifest = job.windows_dir / window.name / MANIFEST_FILE
        data = manifest.read_bytes() if manifest.is_file() else repr(window)
        plan = WindowPlan(window, snapshot, fingerprint(common, data, snapshot))
        if snapshot is not None and not has_weights(folder, snapshot) and not _stays(job, plan):
            plan = WindowPlan(window, None, fingerprint(common, data, None))
        plans.append(plan)
    return plans


def _stays(job: ScoringJob, plan: WindowPlan) -> bool:
    """Whether a growing job has begun to score the window under this plan."""
    return job.growing and _marked(job, plan.window.name) == plan.key


def _marked(job: ScoringJob, window: str) -> str | None:
    """The key of the plan under which the window was last scored; None if unknown."""
    marker = None if job.work_dir is None else job.work_dir / KEYS_DIR / window
    return marker.read_text() if marker is not None and marker.is_file() else None


def choose_snapshots(schema: Schema, snapshots: list[Snapshot]) -> list[Snapshot | None]:
    """The snapshot for each window; None where there is none yet.

    Raises:
        LookAheadError: see :func:`check_no_look_ahead`.
    """
    chosen = [latest_before(snapshots, window.start_ms) for window in schema.windows]
    for snapshot, window in zip(chosen, schema.windows, strict=True):
        if snapshot is not None:
            check_no_look_ahead(snapshot, window, schema)
    return chosen


def parts_of(plans: list[WindowPlan], count: int) -> list[list[WindowPlan]]:
    """``plans`` split into up to ``count`` non-empty runs of neighbours with about equally many
    examples."""
    total = sum(plan.window.rows for plan in plans)
    parts: list[list[WindowPlan]] = [[] for _ in range(count)]
    seen = 0
    for plan in plans:
        parts[min(count - 1, seen * count // max(total, 1))].append(plan)
        seen += plan.window.rows
    return [part for part in parts if part]


def score_part(job: ScoringJob, plans: list[WindowPlan]) -> None:
    """Score ``plans`` in one launch of ranks; resumes after the last segment that a killed call has
    written.

    Raises:
        LookAheadError, InputError: as :func:`score_windows`.
    """
    if plans:
        partition = load_partition(job.partition_file, job.teacher.model)
        launch(_score_rank, (job, partition, plans), job.train)


def finish_scoring(job: ScoringJob) -> ScoreReport:
    """Write scoring.json once every window is done, and return the report."""
    return report_scores(job.windows_dir, job.log_dir, job.settings)


def report_scores(windows_dir: Path, log_dir: Path, settings: AugmentSettings) -> ScoreReport:
    """Write scoring.json for the finished windows of the log, and return the report."""
    log = ScoreLog(log_dir)
    facts = [log.window(window.name) for window in Schema.load(windows_dir).windows]
    done = [one for one in facts if one is not None]
    report = _report(done, settings)
    write_json(log_dir / SCORING_FILE, asdict(report))
    return report


def calls_saved(scored_by_domain: dict[str, int], readers: dict[str, int]) -> int:
    """Teacher calls saved by one shared log instead of one per reader: scores read minus scores
    made.

    Args:
        readers: number of students that read each domain.
    """
    reads = sum(scored_by_domain.get(domain, 0) * count for domain, count in readers.items())
    return reads - sum(rows for domain, rows in scored_by_domain.items() if readers.get(domain))


def scoring_speed(work_dir: Path) -> tuple[int, float]:
    """(examples, seconds) over all segments with times in ``work_dir``."""
    paths = sorted((work_dir / TIMES_DIR).glob("*.jsonl"))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return sum(line["rows"] for line in lines), sum(line["seconds"] for line in lines)


def _drop_stale(job: ScoringJob, log: ScoreLog, plan: WindowPlan) -> None:
    """Keep what an earlier call with the same key has written, complete or not; remove anything
    else."""
    name = plan.window.name
    try:
        done = log.window(name)
    except InputError:  # damaged: scored again
        done = None
        log.drop(name)
    same = _marked(job, name) == plan.key
    if same and (done is None or _is_whole(job, log.folder, done)):
        return
    log.drop(name)
    if job.work_dir is not None:
        marker = job.work_dir / KEYS_DIR / name
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(marker, plan.key.encode())


def _is_whole(job: ScoringJob, folder: Path, facts: WindowFacts) -> bool:
    """Whether the segments are unchanged since they were written; a growing job reads each one only
    once for this, not in every call."""
    seen = (
        job.work_dir / WHOLE_DIR / facts.window
        if job.growing and job.work_dir is not None
        else None
    )
    state = repr(folder_state(folder / facts.window))
    if seen is not None and seen.is_file() and seen.read_text() == state:
        return True
    paths = [(folder / facts.window / name, digest) for name, digest in facts.segments.items()]
    whole = all(path.is_file() and file_hash(path) == digest for path, digest in paths)
    if whole and seen is not None:
        seen.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(seen, state.encode())
    return whole


def _used(plans: list[WindowPlan]) -> list[Snapshot]:
    return list(
        {plan.snapshot.name: plan.snapshot for plan in plans if plan.snapshot is not None}.values()
    )


def milliseconds(hours: float | None) -> int | None:
    """``hours`` in ms; None for None."""
    return None if hours is None else int(hours * MS_PER_HOUR)


def _score_rank(job: ScoringJob, partition: Partition | None, plans: list[WindowPlan]) -> None:
    """Score on one rank; rank 0 writes."""
    reader = WindowReader(job.windows_dir)
    engine = teacher_engine(reader.schema, partition, job.teacher, job.train)
    loaded: str | None = None
    with RowProgress(
        "augment", sum(p.window.rows for p in plans), enabled=ranks.rank() == 0
    ) as progress:
        for plan in plans:
            snapshot = _in_time(plan, job.settings)
            if snapshot is not None and snapshot.name != loaded:
                engine.load(job.teacher_dir / SNAPSHOTS_DIR / snapshot.name / WEIGHTS_DIR)
                loaded = snapshot.name
            score_window(engine, reader, plan, job, progress)


def _in_time(plan: WindowPlan, settings: AugmentSettings) -> Snapshot | None:
    """The plan's snapshot; None if the whole window is further past it than the limit."""
    limit, snapshot = milliseconds(settings.max_staleness_hours), plan.snapshot
    if (
        snapshot is None
        or limit is None
        or plan.window.start_ms - snapshot.high_water_mark <= limit
    ):
        return snapshot
    return None


def score_window(
    engine: Engine, reader: WindowReader, plan: WindowPlan, job: ScoringJob, progress: RowProgress
) -> None:
    """Score one window, segment by segment, with ``engine``, which has loaded the snapshot; called
    by every rank.

    Raises:
        LookAheadError: see :func:`check_no_look_ahead`.
    """
    window, settings = plan.window, job.settings
    log = ScoreLog(job.log_dir, task_columns("logit", reader.schema.tasks))
    snapshot = _in_time(plan, settings)
    if snapshot is None:
        progress.advance(window.rows)
    else:
        check_no_look_ahead(snapshot, window, reader.schema)
        batches_per_segment = max(1, settings.segment_rows // settings.batch_size)
        done = ranks.broadcast(len(log.segments(window.name)))
        total = -(-window.rows // settings.batch_size)
        batches = _batches(reader, window, settings, done * batches_per_segment)
        progress.advance(min(done * batches_per_segment * settings.batch_size, window.rows))
        for index in range(done, -(-total // batches_per_segment)):
            began = time.perf_counter()
            predictions = predict(
                engine, islice(batches, batches_per_segment), progress, reader.schema.tasks
            )
            if predictions is not None:
                write_segment(
                    log,
                    window,
                    index,
                    _records(predictions, snapshot, settings, log),
                    reader.schema,
                )
                _note_time(
                    job.work_dir, window, index, predictions.height, time.perf_counter() - began
                )
    if ranks.rank() == 0:
        log.finish(window_facts(log, window, snapshot.name if snapshot else None, settings))
    ranks.barrier()


def _batches(
    reader: WindowReader, window: Window, settings: AugmentSettings, first: int
) -> Iterator[Any]:
    return reader.event_batches(
        window, settings.batch_size, ranks.rank(), ranks.world_size(), first_batch=first
    )


def _records(
    predictions: pl.DataFrame, snapshot: Snapshot, settings: AugmentSettings, log: ScoreLog
) -> pl.DataFrame:
    """Log records from predictions, with ``domain``; an example whose logit is not finite gets no
    score."""
    records = predictions.select(
        "example_id",
        *log.logits,
        "domain",
        snapshot=pl.lit(snapshot.name),
        high_water_mark=pl.lit(snapshot.high_water_mark, dtype=pl.Int64),
        staleness_ms=pl.col("event_time") - snapshot.high_water_mark,
    ).filter(pl.all_horizontal(pl.col(log.logits).is_finite()))
    limit = milliseconds(settings.max_staleness_hours)
    return records if limit is None else records.filter(pl.col("staleness_ms") <= limit)


def write_segment(
    log: ScoreLog, window: Window, index: int, records: pl.DataFrame, schema: Schema
) -> None:
    """Write the window's ``index``-th segment, and count its records by ``domain``."""
    counts = records["domain"].value_counts().sort("domain")
    domains = {schema.domains[domain]: rows for domain, rows in counts.iter_rows()}
    log.write_chunk(window.name, index, records, domains)


def _note_time(
    work_dir: Path | None, window: Window, segment: int, rows: int, seconds: float
) -> None:
    if work_dir is None:
        return
    times_dir = work_dir / TIMES_DIR
    times_dir.mkdir(parents=True, exist_ok=True)
    line = {"segment": segment, "rows": rows, "seconds": seconds, "ended_at": time.time()}
    with (times_dir / f"{window.name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def window_facts(
    log: ScoreLog, window: Window, scorer: str | None, settings: AugmentSettings
) -> WindowFacts:
    """The contents of window.json for a window whose segments are written.

    Args:
        scorer: the snapshot, or other scorer, that scored it.
    """
    segments = log.segments(window.name)
    edges = np.array([milliseconds(hours) for hours in settings.staleness_bins_hours])
    counts = np.zeros(len(edges) + 1, dtype=np.int64)
    scored, total, largest = 0, 0, None
    for staleness in staleness_parts(segments):
        values = staleness.to_numpy()
        counts += np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(counts))
        scored, total = scored + len(values), total + int(values.sum())
        largest = max(largest or 0, int(values.max())) if len(values) else largest
    return WindowFacts(
        window=window.name,
        rows=window.rows,
        scored=scored,
        snapshot=scorer if scored else None,
        mean_staleness_ms=total / scored if scored else None,
        max_staleness_ms=largest,
        staleness=counts.tolist(),
        domains=domains_of(segments),
        segments={segment.name: file_hash(segment) for segment in segments},
    )


def _report(windows: list[WindowFacts], settings: AugmentSettings) -> ScoreReport:
    rows, scored = sum(w.rows for w in windows), sum(w.scored for w in windows)
    total = sum((w.mean_staleness_ms or 0.0) * w.scored for w in windows)
    edges = ["0", *(f"{hours:g}" for hours in settings.staleness_bins_hours)]
    names = [f"{low}-{high} h" for low, high in pairwise(edges)] + [f"from {edges[-1]} h"]
    counts = [sum(w.staleness[place] for w in windows) for place in range(len(names))]
    domains: dict[str, int] = {}
    for window in windows:
        for domain, count in window.domains.items():
            domains[domain] = domains.get(domain, 0) + count
    shown = ("window", "rows", "scored", "snapshot", "mean_staleness_ms", "max_staleness_ms")
    return ScoreReport(
        rows=rows,
        scored=scored,
        missing=rows - scored,
        hit_rate=scored / rows if rows else 0.0,
        miss_rate=1.0 - scored / rows if rows else 1.0,
        mean_staleness_ms=total / scored if scored else None,
        staleness=dict(zip(names, counts, strict=True)),
        scored_by_domain=domains,
        windows=[{name: getattr(window, name) for name in shown} for window in windows],
    )
