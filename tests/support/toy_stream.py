"""Four windows of two domains, and a teacher and students for them."""

from pathlib import Path

import polars as pl

from recsys.data.encoder import encoder_of_ids
from recsys.data.schema import CategoricalFeature, Schema, Window
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.teacher_settings import TeacherSettings
from recsys.models.settings import ModelSettings
from recsys.training.settings import TrainSettings

ROWS = 300
HOUR = 3_600_000
WINDOWS = [Window(f"w{i}", i * HOUR, (i + 1) * HOUR, ROWS, 40 * 60_000) for i in range(4)]
FEATURES = [CategoricalFeature("user", 40), CategoricalFeature("ad", 20)]
MODEL = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
TRAIN = TrainSettings(world_size=1, global_batch_size=64, sharding="table_wise", memory_gb=1.0)
TEACHER = TeacherSettings(
    model=MODEL,
    dense_passes=0,
    table_learning_rate=None,
    snapshot_every_windows=1,
    hold_back_ne_increase=10.0,
    seed=1,
)
STUDENTS = StudentsSettings(
    model=MODEL,
    dense_passes=0,
    table_learning_rate=None,
    seeds=[1],
    students=[StudentSettings(name="one", domain="b")],
    distillation=DistillationSettings(
        loss_weight=1.0, gradient_scale=10.0, label_scale=1.0, gate_windows=None
    ),
    arms={"plain": DistillationSettings(mode="none"), "distilled": DistillationSettings()},
)


def write_windows(folder: Path) -> None:
    """Four windows of two domains; the label is known up to 40 minutes after the event."""
    Schema("toy", ["price"], FEATURES, ["a", "b"], WINDOWS, 0.25, {}).save(folder)
    encoder_of_ids(["price"], FEATURES, ["a", "b"], given=True).save(folder)
    for index, window in enumerate(WINDOWS):
        (folder / window.name).mkdir()
        row = pl.int_range(ROWS, dtype=pl.Int64)
        event_time = window.start_ms + row * (HOUR // ROWS)
        frame = pl.select(
            example_id=row + index * ROWS,
            event_time=event_time,
            label_time=event_time + (row * 7919 % 40) * 60_000,
            domain=(row % 2).cast(pl.Int32),
            group=row * 31 % 40,
            price=(row * 13 % 17).cast(pl.Float32),
            user=row * 31 % 40,
            ad=row * 17 % 20,
            label=(row * 17 % 20 < 5).cast(pl.Float32),
        )
        frame.write_parquet(folder / window.name / "part-00000.parquet")
