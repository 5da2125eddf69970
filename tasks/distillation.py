"""The teacher, and the students that learn from its scores."""

import json
import shutil
from pathlib import Path

from prefect import task

from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.distill.student_settings import StudentsSettings
from recsys.training.settings import TrainSettings
from tasks.project import (
    PARAMS,
    PARTITION_FILE,
    SCORES,
    STUDENTS,
    STUDENTS_WORK,
    TEACHER,
    TEACHER_WORK,
    WINDOWS,
    replacing,
    require,
)
from tasks.snapshots import check_scores
from tasks.teacher_settings import load_teacher
from tasks.tracking import RunRecord, flatten, record
from tasks.versioning import output_version

CURVES = ("ne", "auc", "logloss", "calibration")
DIAGNOSTICS = (
    "missing_scores",
    "clip_rate",
    "gradient_ratio",
    "gradient_cosine",
    "serving_calibration",
    "distillation_calibration",
)
SKIPPED = "skipped_batches"


@task
def train_teacher_model() -> None:
    """Train the teacher over all domains in time order and write models/teacher; goes on where a
    killed run stopped."""
    from recsys.distill.teacher import train_teacher
    from recsys.distill.training_job import TrainingJob

    require(WINDOWS, PARTITION_FILE)
    settings, train = load_teacher(PARAMS)
    with replacing(TEACHER) as (output,):
        train_teacher(
            TrainingJob(WINDOWS, settings, train, output, partition_file=PARTITION_FILE),
            TEACHER_WORK,
        )
    shutil.rmtree(TEACHER_WORK, ignore_errors=True)
    record(
        RunRecord(
            name="teacher",
            kind="teacher",
            parameters=flatten(settings) | flatten(train),
            data_version=output_version(WINDOWS),
            dataset=Schema.load(WINDOWS).dataset,
            curves=curves_of(TEACHER),
            tags={"partition_version": output_version(PARTITION_FILE.parent)},
            artifacts={
                str(TEACHER / name): "" for name in ("metrics.json", "plan.json", "plan.png")
            },
        )
    )


@task
def train_all_students() -> None:
    """Train each student once an arm and seed into models/students; a killed run goes on."""
    from recsys.distill.students import train_students
    from recsys.distill.training_job import TrainingJob

    require(WINDOWS, SCORES)
    check_scores()
    settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    with replacing(STUDENTS) as (output,):
        train_students(
            TrainingJob(WINDOWS, settings, train, output, scores_dir=SCORES), STUDENTS_WORK
        )
    shutil.rmtree(STUDENTS_WORK, ignore_errors=True)
    for folder in sorted(STUDENTS.glob("*/*/seed-*")):
        student, arm, seed = folder.parts[-3:]
        record(
            RunRecord(
                name=f"{student}-{arm}-{seed}",
                kind="student",
                parameters=flatten(settings)
                | flatten(train)
                | {"seed": seed.removeprefix("seed-")},
                data_version=output_version(WINDOWS),
                dataset=Schema.load(WINDOWS).dataset,
                curves=curves_of(folder),
                tags={"student": student, "arm": arm, "scores_version": output_version(SCORES)},
                artifacts={str(folder / "metrics.json"): ""},
            )
        )


def curves_of(folder: Path, first_window: int = 0) -> dict[str, list[float | None]]:
    """Per-window metrics, diagnostics and skipped batches of one model, as MLflow curves
    ``window/ne`` and so on.

    A task beside the main one has ``window/ne_<task>``. Each value stands at its window's place,
    None where it is not defined; those before ``first_window`` are left out.
    """
    windows = json.loads((folder / "metrics.json").read_text())["windows"][first_window:]
    further = {
        key: None
        for window in windows
        for key in window
        if key.startswith(tuple(f"{c}_" for c in CURVES))
    }
    curves = {
        key: [window.get(key) for window in windows] for key in (*CURVES, *DIAGNOSTICS, *further)
    }
    if any(SKIPPED in window for window in windows):
        curves[SKIPPED] = [window.get(SKIPPED, 0) for window in windows]
    return {
        f"window/{key}": curve
        for key, curve in curves.items()
        if any(value is not None for value in curve)
    }
