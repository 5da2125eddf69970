"""The teacher: one large model over all domains, trained once through the stream, publishing snapshots."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from recsys.data.loader import WindowReader
from recsys.data.schema import Schema, Window
from recsys.distill import ranks
from recsys.distill.settings import TeacherSettings
from recsys.distill.snapshots import SNAPSHOTS_DIR, Snapshot, hash_weights, publish
from recsys.distill.stream import Stream, run_stream, write_json
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.progress import RowProgress
from recsys.towers.partition_file import Partition
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings

PLAN_FILE = "plan.json"
SIZE_FILE = "size.json"
TABLE_KEY = "embedding_bags"


def train_teacher(
    windows_dir: Path, partition_file: Path | None, settings: TeacherSettings, train: TrainSettings, output_dir: Path
) -> list[dict[str, Any]]:
    """Train the teacher through all windows.

    Writes in ``output_dir``: snapshots/<name>/, predictions/<window>.parquet, metrics.json (a row a
    window), plan.json (where each table's shards are) and size.json (parameters).

    Returns:
        Metrics of each window.

    Raises:
        InputError: no data, no partition though the model has towers, or a plan that does not fit.
    """
    partition = load_partition(partition_file, settings.model)
    Schema.load(windows_dir)
    arguments = (windows_dir, partition, settings, train, output_dir)
    return run_on_ranks(_train_rank, arguments, train.world_size, train.threads_per_rank)[0]


def load_partition(partition_file: Path | None, model: ModelSettings) -> Partition | None:
    """The partition that ``model`` needs; None for a model without towers."""
    return Partition.load(partition_file) if model.towers and partition_file is not None else None


def teacher_engine(
    schema: Schema, partition: Partition | None, settings: TeacherSettings, train: TrainSettings
) -> Engine:
    """A fresh teacher on this rank's process group."""
    ranker = build_ranker(schema, settings.model, partition, settings.seed, table_device="meta")
    return Engine(ranker, train, settings.seed, partition)


def model_size(state: dict[str, Tensor]) -> dict[str, int]:
    """Parameters in the embedding tables and in the dense part of a full state."""
    tables = sum(value.numel() for name, value in state.items() if TABLE_KEY in name.split("."))
    return {"table_parameters": tables, "dense_parameters": sum(v.numel() for v in state.values()) - tables}


def _train_rank(
    windows_dir: Path, partition: Partition | None, settings: TeacherSettings, train: TrainSettings, output_dir: Path
) -> list[dict[str, Any]]:
    """The teacher on one rank."""
    reader = WindowReader(windows_dir)
    engine = teacher_engine(reader.schema, partition, settings, train)
    stream = Stream(reader, train.global_batch_size)
    publisher = _Publisher(engine, settings, reader.windows, output_dir / SNAPSHOTS_DIR)
    with RowProgress("teacher", 2 * stream.rows(), enabled=ranks.rank() == 0) as progress:
        history = run_stream(engine, engine.serving_loss, stream, output_dir, progress, publisher.after_window)
    plan = engine.plan_summary()
    state = engine.gather_state()
    if ranks.rank() == 0:
        write_json(output_dir / PLAN_FILE, plan)
        write_json(output_dir / SIZE_FILE, model_size(state))
    return history


class _Publisher:
    """Publishes a snapshot every few windows; holds it back when its NE jumps above the last good one's."""

    def __init__(self, engine: Engine, settings: TeacherSettings, windows: list[Window], snapshots_dir: Path) -> None:
        self._engine, self._settings, self._windows, self._folder = engine, settings, windows, snapshots_dir
        self._good_ne: float | None = None

    def after_window(self, window: Window, ne: float) -> None:
        """Publish if it is this window's turn; called by every rank."""
        if (self._windows.index(window) + 1) % self._settings.snapshot_every_windows:
            return
        held_back = is_worse(ne, self._good_ne, self._settings.hold_back_ne_increase)
        if not held_back and math.isfinite(ne):
            self._good_ne = ne
        snapshot = Snapshot(
            name=window.name,
            window=window.name,
            high_water_mark=window.end_ms,
            ne=ne if math.isfinite(ne) else None,
            weights_hash=ranks.broadcast(hash_weights(self._engine.gather_state())),
            held_back=held_back,
        )
        publish(self._folder, snapshot, self._engine.save)


def is_worse(ne: float, reference: float | None, allowed_increase: float) -> bool:
    """Whether ``ne`` lies more than the allowed fraction above ``reference`` (None: nothing to compare with).

    An NE that is not defined (a window of one class) says nothing, so it holds nothing back.
    """
    return reference is not None and ne > reference * (1.0 + allowed_increase)
