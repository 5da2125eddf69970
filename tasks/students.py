"""Train the students that learn from the teacher's scores."""

import shutil

from prefect import task

from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.distill.recipe import CHOICES_FILE
from recsys.distill.student_settings import StudentsSettings
from recsys.files import read_json
from recsys.training.settings import TrainSettings
from tasks.curves import curves_of
from tasks.live import following
from tasks.project import (
    PARAMS,
    SCORES,
    STUDENTS,
    STUDENTS_KEPT,
    STUDENTS_WORK,
    WINDOWS,
    replacing,
    require,
)
from tasks.snapshots import check_scores
from tasks.tracking import RunRecord, flatten, open_run
from tasks.versioning import output_version


@task(task_run_name="train the students", tags=["training"])
def train_all_students() -> None:
    """Train each student once per arm and seed into models/students. A killed run resumes, and
    models that the last run trained with the same settings, data and code are reused."""
    from recsys.distill.students import train_students
    from recsys.distill.training_job import TrainingJob

    require(WINDOWS, SCORES)
    check_scores()
    settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    data_version, dataset = output_version(WINDOWS), Schema.load(WINDOWS).dataset
    parameters = flatten(settings) | flatten(train)

    def run_of(name: str) -> RunRecord:
        student, arm, seed = name.split("/")
        number = seed.removeprefix("seed-")
        return RunRecord(
            name=f"{student}: {arm}, seed {number}",
            kind="student",
            parameters=parameters | {"student": student, "arm": arm, "seed": number},
            data_version=data_version,
            dataset=dataset,
            tags={
                "student": student,
                "arm": arm,
                "seed": number,
                "scores_version": output_version(SCORES),
            },
            description=(
                f"The student {student}, arm {arm}, with training seed {number}. `window/ne` is of "
                "predictions made before it trained on the window; a step is a window."
            ),
        )

    stage = RunRecord(
        name="students",
        kind="students",
        parameters=parameters,
        data_version=data_version,
        dataset=dataset,
        description="Below it a run for each student, arm and seed.",
        loads=True,
    )
    with open_run(stage), following("students", run_of) as follower:
        with replacing(STUDENTS) as (output,):
            job = TrainingJob(
                WINDOWS, settings, train, output, scores_dir=SCORES, live_dir=follower.folder
            )
            train_students(job, STUDENTS_WORK, STUDENTS_KEPT)
        shutil.rmtree(STUDENTS_WORK, ignore_errors=True)
        for folder in sorted(STUDENTS.glob("*/*/seed-*")):
            student, arm, _ = folder.parts[-3:]
            follower.finish(
                folder.relative_to(STUDENTS).as_posix(),
                curves_of(folder),
                tags=_recipe(settings, student, arm),
                artifacts={str(folder / "metrics.json"): ""},
            )


def _recipe(settings: StudentsSettings, name: str, arm: str) -> dict[str, str]:
    """The rows that the student ``name`` trained on in ``arm`` and its tables' learning rate, as
    set or as chosen."""
    student = next(one for one in settings.students if one.name == name)
    rows, rate = settings.distillation_of(student, arm).rows, settings.table_learning_rate
    path = STUDENTS / name / CHOICES_FILE
    chosen = read_json(path).get(arm) if path.is_file() else None
    if chosen is not None:
        rows, rate = chosen["rows"], chosen["table_learning_rate"]
    return {"rows": rows} | ({} if rate is None else {"table_learning_rate": str(rate)})
