"""Train the teacher."""

import shutil

from prefect import task

from recsys.data.schema import Schema
from tasks.curves import curves_of
from tasks.live import following
from tasks.project import PARAMS, PARTITION_FILE, TEACHER, TEACHER_WORK, WINDOWS, replacing, require
from tasks.teacher_settings import load_teacher
from tasks.tracking import RunRecord, flatten
from tasks.versioning import output_version


@task(task_run_name="train the teacher", tags=["training"])
def train_teacher_model() -> None:
    """Train the teacher on all domains in time order and write models/teacher; resumes where a
    killed run stopped."""
    from recsys.distill.teacher import train_teacher
    from recsys.distill.training_job import TrainingJob

    require(WINDOWS, PARTITION_FILE)
    settings, train = load_teacher(PARAMS)
    run = RunRecord(
        name="teacher",
        kind="teacher",
        parameters=flatten(settings) | flatten(train),
        data_version=output_version(WINDOWS),
        dataset=Schema.load(WINDOWS).dataset,
        tags={"partition_version": output_version(PARTITION_FILE.parent)},
        description=(
            "The teacher, trained once through all windows in order. `window/ne` is of predictions "
            "made before it trained on the window; a step is a window."
        ),
        loads=True,
    )
    with following("teacher", lambda _: run) as follower:
        with replacing(TEACHER) as (output,):
            train_teacher(
                TrainingJob(
                    WINDOWS,
                    settings,
                    train,
                    output,
                    partition_file=PARTITION_FILE,
                    live_dir=follower.folder,
                ),
                TEACHER_WORK,
            )
        shutil.rmtree(TEACHER_WORK, ignore_errors=True)
        files = ("metrics.json", "plan.json", "plan.png")
        follower.finish(
            "teacher", curves_of(TEACHER), artifacts={str(TEACHER / name): "" for name in files}
        )
