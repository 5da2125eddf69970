"""Train the students that learn from the teacher's scores."""

import shutil

from prefect import task

from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.distill.recipe_choice import CHOICES_FILE
from recsys.distill.student_settings import StudentsSettings
from recsys.files import read_json
from recsys.training.settings import TrainSettings
from tasks.curves import curves_of
from tasks.project import PARAMS, SCORES, STUDENTS, STUDENTS_WORK, WINDOWS, replacing, require
from tasks.snapshots import check_scores
from tasks.tracking import RunRecord, flatten, record
from tasks.versioning import output_version


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
                tags={
                    "student": student,
                    "arm": arm,
                    "scores_version": output_version(SCORES),
                }
                | _recipe(settings, student, arm),
                artifacts={str(folder / "metrics.json"): ""},
            )
        )


def _recipe(settings: StudentsSettings, name: str, arm: str) -> dict[str, str]:
    """Which rows the student called ``name`` has learnt from in ``arm``, and the rate of its
    tables: as set, or as chosen."""
    student = next(one for one in settings.students if one.name == name)
    rows, rate = settings.distillation_of(student, arm).rows, settings.table_learning_rate
    path = STUDENTS / name / CHOICES_FILE
    chosen = read_json(path).get(arm) if path.is_file() else None
    if chosen is not None:
        rows, rate = chosen["rows"], chosen["table_learning_rate"]
    return {"rows": rows} | ({} if rate is None else {"table_learning_rate": str(rate)})
