"""DVC in the flows: whether a stage is up to date, and recording it after a run."""

from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from tasks import versioning
from tasks.calling import is_tracked
from tasks.shown import is_busy

CACHED = "Cached"


@task(task_run_name="check {stage}", tags=["dvc"])
def check_stage(stage: str, stale: set[str]) -> State:
    """A completed state, named ``Cached`` if the stage is not among the stale ones."""
    if stage in stale:
        return Completed(message=f"{stage} has to run")
    return Completed(name=CACHED, message=f"{stage} is up to date")


def is_stale(stage: str, stale: set[str]) -> bool:
    """Whether the stage has to run; shown as a task by :func:`check_stage` if Prefect's server
    answers."""
    if is_tracked():
        return check_stage(stage, stale, return_state=True).name != CACHED
    return stage in stale


@task(task_run_name="commit {stage}", tags=["dvc"], retry_condition_fn=is_busy)
def commit_stage(stage: str) -> None:
    """Write the stage's inputs and outputs to dvc.lock and DVC's cache."""
    versioning.commit_stage(stage)
