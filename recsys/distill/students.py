"""Students: one small model a domain, trained with the teacher's scores and without, once a seed."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys.config import InputError
from recsys.data.loader import WindowReader
from recsys.data.schema import Schema
from recsys.distill import ranks
from recsys.distill.auxiliary_head import RANKER_PREFIX, DistillationLoss, DistilledRanker
from recsys.distill.settings import StudentSettings, StudentsSettings
from recsys.distill.stream import Stream, run_stream, write_json
from recsys.distill.teacher import CHECKPOINT_KEYS, CODE, PLACEMENT_KEYS, code_of, model_size
from recsys.models.factory import build_ranker
from recsys.progress import RowProgress
from recsys.serving.export import export_ranker
from recsys.training.checkpoints import PARTIAL_SUFFIX, write_durably
from recsys.training.engine import Engine, LossFunction
from recsys.training.launch import launch
from recsys.training.resume import (
    CHECKPOINTS_DIR,
    OUTPUT_DIR,
    Checkpoints,
    fingerprint,
    folder_state,
    link_files,
    work_folder,
)
from recsys.training.settings import TrainSettings

PLAIN, DISTILLED = "plain", "distilled"
ARMS = (PLAIN, DISTILLED)
EXPORT_DIR = "export"
SIZE_FILE = "size.json"
ENDED_FILE = "ended.json"


@dataclass(frozen=True)
class Run:
    """One student x arm x seed."""

    student: StudentSettings
    arm: str
    seed: int

    def folder(self, output_dir: Path) -> Path:
        """Where its predictions and metrics go."""
        return output_dir / self.student.name / self.arm / f"seed-{self.seed}"


def train_students(
    windows_dir: Path,
    scores_dir: Path,
    settings: StudentsSettings,
    train: TrainSettings,
    output_dir: Path,
    resume_dir: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train all students x arms x seeds in one launch of ranks.

    Both arms of a seed start from the same weights and see the same batches; only the distilled one
    has the second head. Writes <student>/<arm>/seed-<n>/{predictions,metrics.json}, for the first
    seed <student>/<arm>/export/, and size.json (parameters of a served student).

    With ``resume_dir`` a killed run goes on at the student and window it was at, as
    :func:`recsys.distill.teacher.train_teacher` does. The caller removes ``resume_dir``.

    Returns:
        Metrics of each window by "<student>/<arm>/seed-<n>".

    Raises:
        InputError: a student's domain is not in the data, the model has towers, or ``resume_dir`` is in use.
    """
    schema = Schema.load(windows_dir)
    check_students(schema, settings)

    def run_ranks(folder: Path, checkpoints: Checkpoints | None) -> dict[str, list[dict[str, Any]]]:
        arguments = (windows_dir, scores_dir, settings, train, folder, checkpoints)
        return launch(_train_rank, arguments, train)[0]

    if resume_dir is None:
        return run_ranks(output_dir, None)
    decisive = settings.model_dump(exclude=CHECKPOINT_KEYS), train.model_dump(exclude=PLACEMENT_KEYS)
    run = fingerprint(folder_state(windows_dir), folder_state(scores_dir), code_of(CODE), decisive)
    with work_folder(resume_dir, run, shared=train.nodes.count > 1) as folder:
        every, keep = settings.checkpoint_every_batches, settings.keep_checkpoints
        results = run_ranks(folder / OUTPUT_DIR, Checkpoints(folder / CHECKPOINTS_DIR, run, keep, every))
        link_files(folder / OUTPUT_DIR, output_dir)
    return results


def check_students(schema: Schema, settings: StudentsSettings) -> None:
    """Check that each student's domain is in the data and that the model needs no partition.

    Raises:
        InputError: otherwise.
    """
    if settings.model.towers:
        raise InputError("students: key 'model.towers': students are too small to be split; set towers: false")
    for student in settings.students:
        if student.domain not in schema.domains:
            raise InputError(
                f"students: {student.name!r} has domain {student.domain!r}; the data has {', '.join(schema.domains)}"
            )


def _train_rank(
    windows_dir: Path,
    scores_dir: Path,
    settings: StudentsSettings,
    train: TrainSettings,
    output_dir: Path,
    checkpoints: Checkpoints | None,
) -> dict[str, list[dict[str, Any]]]:
    """All students on one rank."""
    reader = WindowReader(windows_dir)
    runs = [Run(student, arm, seed) for student in settings.students for seed in settings.seeds for arm in ARMS]
    streams = [_stream(reader, run, scores_dir, train) for run in runs]
    total = 2 * sum(stream.rows() for stream in streams)
    results = {}
    with RowProgress("students", total, enabled=ranks.rank() == 0) as progress:
        for run, stream in zip(runs, streams, strict=True):
            folder = run.folder(output_dir)
            name = folder.relative_to(output_dir).as_posix()
            own = None if checkpoints is None else replace(checkpoints, folder=run.folder(checkpoints.folder))
            history = None if own is None else _ended(own)
            if history is None:
                history = _train_run(run, stream, settings, train, folder, progress, own)
            else:
                progress.advance(2 * stream.rows())
            results[name] = history
    return results


def _ended(checkpoints: Checkpoints) -> list[dict[str, Any]] | None:
    """The metrics of a student that an earlier process has ended; None where it has not."""
    path, history = checkpoints.folder / ENDED_FILE, None
    if ranks.rank() == 0:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        history = json.loads(path.read_text()) if path.exists() else None
    return ranks.broadcast(history)


def _end(checkpoints: Checkpoints, history: list[dict[str, Any]]) -> None:
    """Note that a student is done, then drop the checkpoints it needs no more."""
    if ranks.rank() == 0:
        partial = checkpoints.folder / f"{ENDED_FILE}{PARTIAL_SUFFIX}"
        write_durably(partial, json.dumps(history))
        partial.rename(checkpoints.folder / ENDED_FILE)
        for path in checkpoints.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    ranks.barrier()


def _stream(reader: WindowReader, run: Run, scores_dir: Path, train: TrainSettings) -> Stream:
    domain = reader.schema.domains.index(run.student.domain)
    return Stream(reader, train.global_batch_size, domain, scores_dir if run.arm == DISTILLED else None)


def _train_run(
    run: Run,
    stream: Stream,
    settings: StudentsSettings,
    train: TrainSettings,
    folder: Path,
    progress: RowProgress,
    checkpoints: Checkpoints | None,
) -> list[dict[str, Any]]:
    """Train one student; export it if it is of the first seed."""
    schema = stream.reader.schema
    engine, loss_function = _engine(run, schema, settings, train)
    history = run_stream(engine, loss_function, stream, folder, progress, checkpoints=checkpoints)
    if run.seed == settings.seeds[0]:
        state = engine.gather_state()
        if ranks.rank() == 0:
            served = {name.removeprefix(RANKER_PREFIX): v for name, v in state.items() if _is_served(name, run.arm)}
            export_ranker(served, schema, settings.model, folder.parent / EXPORT_DIR)
            write_json(folder.parents[2] / SIZE_FILE, model_size(served))
    if checkpoints is not None:
        _end(checkpoints, history)
    return history


def _engine(run: Run, schema: Schema, settings: StudentsSettings, train: TrainSettings) -> tuple[Engine, LossFunction]:
    ranker = build_ranker(schema, settings.model, None, run.seed, table_device="meta")
    if run.arm == PLAIN:
        engine = Engine(ranker, train, run.seed)
        return engine, engine.serving_loss
    distilled = DistilledRanker(ranker, settings.distillation, run.seed, schema.initial_base_rate)
    return Engine(distilled, train, run.seed), DistillationLoss(settings.distillation)


def _is_served(name: str, arm: str) -> bool:
    return arm == PLAIN or name.startswith(RANKER_PREFIX)
