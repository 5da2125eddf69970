"""The teacher: one large model for all domains, trained in one pass through the data, which
publishes snapshots."""

import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from recsys.data.loader import WindowReader
from recsys.data.schema import Schema, Window, task_columns
from recsys.distill.early_choice import lowest_ne
from recsys.distill.snapshots import (
    SNAPSHOTS_DIR,
    Snapshot,
    drop_weights,
    hash_weights,
    publish,
)
from recsys.distill.teacher_checks import check_teacher, check_teacher_data
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import TrainingJob, resumable
from recsys.evaluation.metrics import METRICS
from recsys.files import fingerprint, finite, folder_state, read_json, write_json
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.planning.plan_report import draw_plan
from recsys.progress import EVERY_PASS, RowProgress
from recsys.provenance import Code, code_of, file_of, modules_named
from recsys.scratch import scratch
from recsys.sharding.training_plan import predict_training
from recsys.towers.engine import tower_engine
from recsys.training import ranks
from recsys.training.batch_size import AUTO_BATCH
from recsys.training.engine import Engine
from recsys.training.label_loss import label_loss
from recsys.training.launch import launch
from recsys.training.launch_settings import LaunchSettings
from recsys.training.resume import Checkpoints
from recsys.training.settings import TrainSettings
from recsys.validation.progressive import DataView, predict_then_train

PLAN_FILE = "plan.json"
PLAN_FIGURE = "plan.png"
SIZE_FILE = "size.json"
LIVE_FILE = "teacher.jsonl"
TABLE_KEY = "embedding_bags"
RATE_FILE = "rate.json"
CHECKPOINT_KEYS = {
    "checkpoint_every_batches",
    "keep_checkpoints",
    "checkpoint_asynchronously",
    "full_checkpoint_every",
    "keep_snapshots",
}  # not quantise_checkpoints, which affects the result of a killed run
PLACEMENT_KEYS = {
    *LaunchSettings.model_fields,
    "memory_gb",
    "host_memory_gb",
    "table_memory",
    "table_file_dir",
    "sharding",
    "table_sharding",
    "hardware",
    "ids_per_list",
    "overlap",
    "prefetch_batches",
} - {"device"}


def train_teacher(
    job: TrainingJob[TeacherSettings], resume_dir: Path | None = None
) -> list[dict[str, Any]]:
    """Train the teacher through all windows.

    Writes to ``job.output_dir``: snapshots/<name>/, predictions/<window>.parquet, metrics.json (one
    row per window), rate.json (the tables' learning rate, if it was chosen), plan.json (where each
    table's shards are), plan.png (predicted time and memory per rank) and size.json (parameters,
    and training FLOPs per example).

    With ``resume_dir`` it works there and moves the results to ``job.output_dir`` at the end. A
    killed run resumes from its last checkpoint if data, code and settings are the same (placement
    on ranks may differ), and writes the same bytes as an undisturbed run. The caller removes
    ``resume_dir``.

    Returns:
        Metrics of each window.

    Raises:
        InputError: there are no data, the model has towers but there is no partition, the plan does
            not fit, or ``resume_dir`` is in use.
    """
    Schema.load(job.windows_dir)  # fails before anything is created
    if resume_dir is None:
        return run_teacher(job)
    with resumable(job, resume_dir, _run_name(job), teacher_checkpoints) as resumed:
        return run_teacher(resumed)


def run_teacher(job: TrainingJob[TeacherSettings]) -> list[dict[str, Any]]:
    """One launch of :func:`train_teacher`, from the last checkpoint in ``job.checkpoints`` to the
    last window.

    Raises:
        InputError: as :func:`train_teacher`.
    """
    partition = load_partition(job.partition_file, job.settings.model)
    check_teacher(job.settings, job.train)
    check_teacher_data(Schema.load(job.windows_dir), job.settings)
    chosen = replace(job, train=_with_rate(job, partition))
    return launch(_train_rank, (chosen, partition), chosen.train)[0]


def _with_rate(job: TrainingJob[TeacherSettings], partition: Partition | None) -> TrainSettings:
    """The teacher's training settings; a chosen rate is written to rate.json and kept."""
    settings, path = job.settings, job.output_dir / RATE_FILE
    rate = settings.table_learning_rate
    if rate == "auto":
        if path.is_file():
            rate = float(read_json(path)["table_learning_rate"])
        else:
            found = lowest_ne({one: _tried(one, job, partition) for one in settings.rates_tried})
            print(f"teacher: table learning rate {found}", file=sys.stderr, flush=True)
            rate = found.choice
            write_json(path, {"table_learning_rate": rate, **found.as_json()})
    update = {} if rate is None else {"table_learning_rate": rate}
    return job.train.model_copy(update=update)


def _tried(
    rate: float, job: TrainingJob[TeacherSettings], partition: Partition | None
) -> list[dict[str, Any]]:
    """Metrics of the first windows with the tables' learning rate ``rate``."""
    train = job.train.model_copy(update={"table_learning_rate": rate})
    with TemporaryDirectory(dir=scratch()) as folder:
        trial = replace(job, train=train, output_dir=Path(folder), checkpoints=None)
        return launch(_try_rank, (trial, partition), train)[0]


def teacher_checkpoints(
    folder: Path, run: str, settings: TeacherSettings, continued: bool = False
) -> Checkpoints:
    """The checkpoints of ``run`` in ``folder``, according to ``settings``."""
    return Checkpoints(
        folder,
        run,
        settings.keep_checkpoints,
        settings.checkpoint_every_batches,
        settings.checkpoint_asynchronously,
        settings.full_checkpoint_every,
        settings.quantise_checkpoints,
        continued,
    )


def _run_name(job: TrainingJob[TeacherSettings]) -> str:
    """A name for what decides the teacher's weights: data, code, partition and settings, but not
    placement."""
    partition = load_partition(job.partition_file, job.settings.model)
    decisive = (
        job.settings.model_dump(exclude=CHECKPOINT_KEYS),
        job.train.model_dump(exclude=PLACEMENT_KEYS),
    )
    code = teacher_code(__name__, job.settings.model)
    return fingerprint(folder_state(job.windows_dir), code, partition, decisive)


def teacher_code(module: str, model: ModelSettings) -> Code:
    """The code of ``module``, which builds ``model``, with the tower class that it names; a missing
    class is refused later, when the model is built."""
    classes = [one for one in modules_named(model.tower_module.kind) if file_of(one) is not None]
    return code_of(module, *classes)


def load_partition(partition_file: Path | None, model: ModelSettings) -> Partition | None:
    """The partition that ``model`` needs; None for a model without towers."""
    return Partition.load(partition_file) if model.towers and partition_file is not None else None


def teacher_engine(
    schema: Schema, partition: Partition | None, settings: TeacherSettings, train: TrainSettings
) -> Engine:
    """A fresh teacher on this rank's process group."""
    ranker = build_ranker(schema, settings.model, partition, settings.seed, table_device="meta")
    return tower_engine(ranker, train, settings.seed, partition)


def model_size(state: dict[str, Tensor]) -> dict[str, int]:
    """Parameters in the embedding tables and in the dense part of a full state."""
    tables = sum(value.numel() for name, value in state.items() if TABLE_KEY in name.split("."))
    return {
        "table_parameters": tables,
        "dense_parameters": sum(v.numel() for v in state.values()) - tables,
    }


def _fresh(
    job: TrainingJob[TeacherSettings], partition: Partition | None, reader: WindowReader
) -> tuple[TrainSettings, Engine, DataView]:
    """The teacher's training settings, the untrained teacher, and its data."""
    is_auto = job.settings.batch_size == AUTO_BATCH
    given = {} if is_auto else {"global_batch_size": job.settings.batch_size}
    train = job.train.model_copy(update=given)
    engine = teacher_engine(reader.schema, partition, job.settings, train)
    data = DataView(
        reader,
        train.global_batch_size,
        fits_windows=is_auto,
        dense_passes=job.settings.dense_passes,
    )
    return train, engine, data


def _try_rank(
    job: TrainingJob[TeacherSettings], partition: Partition | None
) -> list[dict[str, Any]]:
    """Train the teacher on this rank, on the windows that decide its rate."""
    reader = WindowReader(job.windows_dir, first_windows=job.settings.rate_auto_windows)
    _, engine, data = _fresh(job, partition, reader)
    loss = partial(label_loss, weights=job.settings.task_weights)
    with RowProgress("teacher's rate", data.examples(), ranks.rank() == 0, EVERY_PASS) as progress:
        return predict_then_train(engine, loss, data, job.output_dir, progress)


def _train_rank(
    job: TrainingJob[TeacherSettings], partition: Partition | None
) -> list[dict[str, Any]]:
    """Train the teacher on this rank."""
    settings, output_dir, checkpoints = job.settings, job.output_dir, job.checkpoints
    reader = WindowReader(job.windows_dir)
    train, engine, data = _fresh(job, partition, reader)
    publisher = _Publisher(engine, settings, output_dir / SNAPSHOTS_DIR, reader.schema.tasks)
    writing = nullcontext() if checkpoints is None else checkpoints.writing()
    with (
        RowProgress("teacher", data.examples(), ranks.rank() == 0, EVERY_PASS) as progress,
        writing,
    ):
        loss = partial(label_loss, weights=settings.task_weights)
        history = predict_then_train(
            engine,
            loss,
            data,
            output_dir,
            progress,
            publisher.after_window,
            checkpoints,
            live=None if job.live_dir is None else job.live_dir / LIVE_FILE,
        )
    plan = engine.plan_summary()
    state = engine.gather_state()
    if ranks.rank() == 0:
        write_json(output_dir / PLAN_FILE, plan)
        ranker = build_ranker(
            reader.schema, settings.model, partition, settings.seed, table_device="meta"
        )
        draw_plan(
            predict_training(ranker, train, ranks.world_size(), plan), output_dir / PLAN_FIGURE
        )
        write_json(
            output_dir / SIZE_FILE,
            model_size(state) | {"flops_an_example": ranker_cost(ranker).flops},
        )
    return history


class _Publisher:
    """Publishes a snapshot every few windows; holds it back if its NE is too far above the last
    good one's.

    The NE is the main task's.
    """

    def __init__(
        self, engine: Engine, settings: TeacherSettings, snapshots_dir: Path, tasks: list[str]
    ) -> None:
        self._engine, self._settings, self._folder = engine, settings, snapshots_dir
        self._metrics = [name for metric in METRICS for name in task_columns(metric, tasks)]

    def after_window(self, window: Window, history: list[dict[str, Any]]) -> None:
        """Publish if a snapshot is due after this window; called by every rank."""
        turns = publication_turns(history, self._settings)
        if not turns or turns[-1] != len(history) - 1:
            return
        *before, row = [history[turn] for turn in turns]
        allowed = self._settings.hold_back_ne_increase
        state = self._engine.gather_state()
        is_bad = is_worse(row["ne"], last_good([one["ne"] for one in before], allowed), allowed)
        snapshot = Snapshot(
            name=window.name,
            window=window.name,
            high_water_mark=window.end_ms,
            ne=row["ne"] if math.isfinite(row["ne"]) else None,
            weights_hash=ranks.broadcast(hash_weights(state)),
            held_back=ranks.broadcast(is_bad or is_broken(row, state)),
            metrics=finite({name: row[name] for name in self._metrics if name in row}),
        )
        publish(self._folder, snapshot, self._engine.save)
        if self._settings.keep_snapshots is not None and ranks.rank() == 0:
            drop_weights(self._folder, self._settings.keep_snapshots)


def publication_turns(history: list[dict[str, Any]], settings: TeacherSettings) -> list[int]:
    """The windows of ``history`` (indices from 0) after which a snapshot is published.

    When counting examples, this is the end of the first window with enough examples since the last
    snapshot: a snapshot inside a window could not score before the next window's start anyway, and
    one at the end is fresher.
    """
    if settings.snapshot_every_examples is None:
        every = settings.snapshot_every_windows
        return list(range(every - 1, len(history), every))
    turns, since = [], 0
    for place, row in enumerate(history):
        since += row.get("rows", 0)
        if since >= settings.snapshot_every_examples:
            turns.append(place)
            since = 0
    return turns


def is_broken(row: dict[str, Any], state: dict[str, Tensor]) -> bool:
    """Whether the window's predictions, or the weights after it, contain NaN or infinity."""
    has_predictions = row.get("rows", 0) > 0 and row.get("logloss") is not None
    predicted_nan = has_predictions and not math.isfinite(row["logloss"])
    return predicted_nan or not all(
        bool(v.isfinite().all()) for v in state.values() if v.is_floating_point()
    )


def last_good(nes: list[float], allowed_increase: float) -> float | None:
    """The last NE that is not worse than the previous good one; None if there is none."""
    good: float | None = None
    for ne in nes:
        if math.isfinite(ne) and not is_worse(ne, good, allowed_increase):
            good = ne
    return good


def is_worse(ne: float, reference: float | None, allowed_increase: float) -> bool:
    """Whether ``ne`` is more than the allowed fraction above ``reference`` (None: nothing to
    compare with).

    An undefined NE (in a window with one class only) counts as not worse.
    """
    return reference is not None and ne > reference * (1.0 + allowed_increase)
