"""What scoring costs beside the teacher's bare forward, the join beside a student's step, and their
memory.

python -m bench.serving.scoring             # about three minutes
python -m bench.serving.scoring --write     # and docs/benchmarks/scoring.md
"""

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl

from bench.shared.report import machine_lines, print_report
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.loader import Batch, ScoreJoin, WindowReader
from recsys.data.schema import Window
from recsys.data.settings import DataSettings, load_dataset
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.score_log import SCORE_SCHEMA, ScoreLog, WindowFacts
from recsys.distill.scoring import ScoringJob, WindowPlan, plans_of, score_window
from recsys.distill.snapshots import Snapshot, hash_weights, publish
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.teacher import teacher_engine
from recsys.models.factory import build_ranker
from recsys.progress import RowProgress
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings
from tasks.teacher_settings import load_teacher

PARAMS, REPORT = Path("params"), Path("docs/benchmarks/scoring.md")
ROWS, WINDOWS = 240_000, 4
REPEATS, JOIN_REPEATS = 5, 25  # the join is a difference of two short times
LOG_ROWS = [100_000, 1_000_000, 10_000_000]
CHUNK, FRAME = 262_144, 50_000  # rows of a segment, and of the examples joined
MEBI = 1024
# Of the logs made here
SNAPSHOT = Snapshot("2024-01-01T00-00", "2024-01-01T00-00", 0, None, "hash", False)


def make_windows(folder: Path) -> Path:
    """The generated stream in few, long windows."""
    settings = load_settings(PARAMS / "data.yaml", DataSettings)
    dataset = load_dataset(settings, PARAMS / "datasets")
    assert dataset.synthetic is not None  # params/data.yaml names the generated stream
    synthetic = dataset.synthetic.model_copy(update={"rows": ROWS, "windows": WINDOWS})
    ingest(
        settings,
        dataset.model_copy(update={"synthetic": synthetic}),
        folder / "windows",
        folder / "oracle",
    )
    return folder / "windows"


def measure_scoring(windows_dir: Path, folder: Path) -> dict[str, list[float]]:
    """Examples/s of the bare forward on batches in memory and of scoring from disk to log, in turn;
    one rank."""
    train = load_settings(PARAMS / "train.yaml", TrainSettings).model_copy(update={"world_size": 1})
    teacher = load_teacher(PARAMS)[0]
    teacher = teacher.model_copy(
        update={"model": teacher.model.model_copy(update={"towers": False})}
    )
    settings = load_settings(PARAMS / "augment.yaml", AugmentSettings)
    reader = WindowReader(windows_dir)
    engine = teacher_engine(reader.schema, None, teacher, train)
    first, window = reader.windows[0], reader.windows[1]
    state = engine.gather_state()
    snapshot = Snapshot(first.name, first.name, first.end_ms, None, hash_weights(state), False)
    publish(folder / "snapshots", snapshot, engine.save)
    job = ScoringJob(windows_dir, None, folder, teacher, settings, train, folder / "log")
    plan = next(plan for plan in plans_of(job, reader.schema) if plan.window == window)
    batches = list(reader.event_batches(window, settings.batch_size, 0, 1))

    def bare() -> None:
        for batch in batches:
            engine.predict(batch)

    def score() -> None:
        _score(engine, reader, plan, job)

    found: dict[str, list[float]] = {"bare forward": [], "scoring": []}
    for repeat in range(REPEATS + 1):
        for name, run in (("bare forward", bare), ("scoring", score)):
            seconds = _seconds(run)
            if repeat:  # the first one warms up
                found[name].append(window.rows / seconds)
    return found


def _score(engine: Engine, reader: WindowReader, plan: WindowPlan, job: ScoringJob) -> None:
    ScoreLog(job.log_dir).drop(plan.window.name)
    with RowProgress("", plan.window.rows, enabled=False) as progress:
        score_window(engine, reader, plan, job, progress)


def measure_join(windows_dir: Path, folder: Path) -> dict[str, list[float]]:
    """Milliseconds per batch of a student: its training step, and what the join adds to its loader,
    in turn."""
    train = load_settings(PARAMS / "train.yaml", TrainSettings).model_copy(update={"world_size": 1})
    students = load_settings(PARAMS / "students.yaml", StudentsSettings)
    reader = WindowReader(windows_dir)
    window = reader.windows[1]
    for source in reader.windows[:2]:
        _log_of(folder / "scores", source, reader)
    engine = Engine(
        build_ranker(reader.schema, students.model, None, 1, table_device="meta"), train, 1
    )

    def read(scores: ScoreJoin | None) -> list[Batch]:
        return list(reader.label_batches(window, train.global_batch_size, 0, 1, 0, scores))

    batches = read(None)

    def steps() -> None:
        for batch in batches:
            engine.train_step(batch, engine.serving_loss)

    found: dict[str, list[float]] = {"step": [], "join": []}
    for repeat in range(JOIN_REPEATS + 1):
        step, without = _seconds(steps), _seconds(lambda: read(None))
        joined = _seconds(lambda: read(ScoreLog(folder / "scores")))
        if repeat:
            found["step"].append(1e3 * step / len(batches))
            found["join"].append(1e3 * (joined - without) / len(batches))
    return found


def _log_of(folder: Path, window: Window, reader: WindowReader) -> None:
    """A score for each example of a window."""
    columns = ["example_id", "event_time"]
    frame = pl.read_parquet(reader.windows_dir / window.name / "part-*.parquet", columns=columns)
    ages = frame["event_time"].to_numpy() - window.start_ms
    ScoreLog(folder).write_chunk(window.name, 0, _records(frame["example_id"].to_numpy(), ages))
    ScoreLog(folder).finish(
        WindowFacts(window.name, window.rows, window.rows, SNAPSHOT.name, None, None, [], {})
    )
    ScoreLog(folder).describe(None, [SNAPSHOT])


def _records(ids: np.ndarray, ages_ms: np.ndarray) -> pl.DataFrame:
    """Scores of examples so much younger than the snapshot; the logits are random."""
    logits = np.random.default_rng(1).normal(size=len(ids))
    frame = pl.DataFrame(
        {"example_id": ids, "logit": logits, "staleness_ms": ages_ms}
    ).with_columns(snapshot=pl.lit(SNAPSHOT.name), high_water_mark=pl.lit(SNAPSHOT.high_water_mark))
    return frame.select(list(SCORE_SCHEMA)).cast(SCORE_SCHEMA)  # type: ignore[arg-type]


def measure_memory(folder: Path, rows: int) -> dict[str, float]:
    """Write a window's log of ``rows`` in segments, then join FRAME of its examples; run in a
    process of its own."""
    base = _peak_mib()
    log, began = ScoreLog(folder), perf_counter()
    for index, start in enumerate(range(0, rows, CHUNK)):
        ids = np.arange(start, min(start + CHUNK, rows))
        log.write_chunk("w", index, _records(ids, ids))
    written = perf_counter() - began
    log.finish(WindowFacts("w", rows, rows, SNAPSHOT.name, None, None, [], {}))
    ids = np.random.default_rng(1).choice(rows, FRAME, replace=False)
    frame = pl.DataFrame({"example_id": ids}).with_columns(
        event_time=pl.lit(1), label_time=pl.lit(2)
    )
    began = perf_counter()
    joined = log.join(frame, Window("w", 0, 1, rows, 0))
    assert joined["score"].null_count() == 0
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    return {
        "write": rows / written,
        "join": perf_counter() - began,
        "peak": _peak_mib() - base,
        "bytes": size / rows,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBI


def _seconds(run: Callable[[], Any]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


def scoring_lines(work: Path) -> list[str]:
    """Scoring against the bare forward, and the join against a student's step."""
    windows = make_windows(work)
    scoring = run_on_ranks(measure_scoring, (windows, work / "scoring"), 1, 1)[0]
    join = run_on_ranks(measure_join, (windows, work / "join"), 1, 1)[0]
    bare, scored = median(scoring["bare forward"]), median(scoring["scoring"])
    ratio = median(s / b for s, b in zip(scoring["scoring"], scoring["bare forward"], strict=True))
    share = median(j / s for j, s in zip(join["join"], join["step"], strict=True))
    joined, step = median(join["join"]), median(join["step"])
    return [
        "| what | measured | beside | measured | ratio |",
        "|---|---:|---|---:|---:|",
        f"| scoring, disk to log | {scored:,.0f} examples/s | bare forward | {bare:,.0f} "
        f"examples/s | {ratio:.1%} |",
        f"| join | {joined:.3f} ms per batch | a student's step | {step:.2f} ms | {share:.1%} |",
    ]


def memory_lines(work: Path) -> list[str]:
    """Peak memory at several sizes of the log, each in a fresh process."""
    lines = [
        "| records of the window | written per second | bytes per record | join of 50,000 | peak "
        "memory |"
    ]
    lines.append("|---:|---:|---:|---:|---:|")
    for rows in LOG_ROWS:
        context = multiprocessing.get_context("spawn")
        with (
            tempfile.TemporaryDirectory(dir=work) as folder,
            ProcessPoolExecutor(1, mp_context=context) as own,
        ):
            found = own.submit(measure_memory, Path(folder), rows).result()
        lines.append(
            f"| {rows:,} | {found['write']:,.0f} | {found['bytes']:.1f} | {found['join']:.2f} s | "
            f"{found['peak']:.0f} MiB |"
        )
    return lines


PARTS = {"Speed": scoring_lines, "Memory": memory_lines}


def main() -> None:
    """Measure, print, and write the report where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    lines = machine_lines("Scoring", "python -m bench.serving.scoring --write", {})
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts:
            lines += ["", f"## {part}", "", *PARTS[part](Path(folder))]
    print_report("\n".join(lines) + "\n", REPORT if given.write else None)


if __name__ == "__main__":
    main()
