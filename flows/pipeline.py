"""The main job as a flow; as a command it is that of flows/run.py."""

from flows.command_line import apply_overrides
from flows.run import main

if __name__ == "__main__":  # before Prefect and torch are imported: most calls need neither
    main()
    raise SystemExit

from prefect import flow

from flows.augment import augment
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.partition import partition
from flows.register import register
from flows.students import students
from flows.teacher import teacher
from tasks.stages import CACHED, check_stage, commit_stage
from tasks.versioning import settled_stages, stale_stages

__all__ = ["STAGES", "main", "pipeline"]

STAGES = (ingest, partition, teacher, augment, students, evaluate, register)


@flow(name="pipeline")
def pipeline(overrides: dict[str, str] | None = None) -> None:
    """Run every stage that is not up to date, in order, and record each in dvc.lock.

    Args:
        overrides: values to write into params/ first, e.g. ``{"data.dataset": "ebnerd_demo"}``.
    """
    apply_overrides(overrides or {})
    stale = settled_stages()
    for stage_flow in STAGES:
        if check_stage(stage_flow.name, stale, return_state=True).name != CACHED:
            stage_flow()
            commit_stage(stage_flow.name)
            stale = stale_stages()
