"""The main job: raw logs to compared, registered students; stages that are up to date are
skipped. As a command it is flows/run.py."""

from flows.command_line import apply_overrides, run_program
from flows.run import add_arguments, run

if __name__ == "__main__":  # before Prefect and torch are imported: most calls need neither
    run_program(__doc__, add_arguments, run)

from prefect import flow

from flows.augment import augment
from flows.baselines import baselines
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.partition import partition
from flows.register import register
from flows.students import students
from flows.teacher import teacher
from tasks.checks import check_before, check_settings_and_data
from tasks.nodes import alone_but_for_nodes
from tasks.pipeline_run import pipeline_run
from tasks.stages import CACHED, check_stage, commit_stage
from tasks.versioning import settled_stages, stale_stages

STAGES = (ingest, baselines, partition, teacher, augment, students, evaluate, register)


@flow(name="pipeline")
def pipeline(overrides: dict[str, str] | None = None) -> None:
    """Run every stage that is not up to date, in order, and record each in dvc.lock.

    Args:
        overrides: values to write into params/ first, e.g. ``{"data.dataset": "ebnerd_demo"}``.
    """
    with alone_but_for_nodes("running the pipeline"):
        apply_overrides(overrides or {})
        check_before(ingest.name)
        stale = settled_stages()
        with pipeline_run("pipeline"):
            for place, stage_flow in enumerate(STAGES, start=1):
                if check_stage(stage_flow.name, stale, return_state=True).name != CACHED:
                    stage_flow()
                    commit_stage(stage_flow.name)
                    if place < len(STAGES):
                        stale = stale_stages(*(one.name for one in STAGES[place:]))
                if stage_flow is ingest:
                    check_settings_and_data()
