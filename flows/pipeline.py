"""The main job: raw logs to compared, registered students; stages that are up to date are
skipped. As a command it is flows/run.py."""

from flows.command_line import apply_overrides, hide_tracebacks_of_mistakes, run_program
from flows.run import add_arguments, run

if __name__ == "__main__":  # before importing Prefect and torch: most calls need neither
    run_program(__doc__, add_arguments, run)

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.augment import augment
from flows.baselines import baselines
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.partition import partition
from flows.register import register
from flows.students import students
from flows.teacher import teacher
from tasks.calling import call, report_late, run_flow
from tasks.checks import check_before, check_settings_and_data
from tasks.nodes import alone_but_for_nodes
from tasks.pipeline_run import pipeline_run
from tasks.shown import flow_run_name, tell_of_failure
from tasks.stages import commit_stage, is_stale
from tasks.versioning import settled_stages, stale_stages

hide_tracebacks_of_mistakes()  # also when a worker runs the flow
STAGES = (ingest, baselines, partition, teacher, augment, students, evaluate, register)


@flow(name="pipeline", flow_run_name=flow_run_name("pipeline"), on_failure=[tell_of_failure])
def pipeline(
    dataset: str | None = None,
    max_windows: Annotated[int | None, Field(ge=1)] = None,
    seeds: list[int] | None = None,
    overrides: dict[str, str] | None = None,
) -> None:
    """Run every stage that is not up to date, in order, and record each in dvc.lock.

    Given values are written into params/ first; others stay as they are there.

    Args:
        dataset: the data set, a file of params/datasets without its .yaml
        max_windows: use at most this many windows, from the first on
        seeds: random seeds of the students' training
        overrides: other settings by file and key, e.g. ``{"evaluate.confidence": "0.9"}``
    """
    given = {"data.dataset": dataset, "data.max_windows": max_windows, "students.seeds": seeds}
    changes = {key: str(value) for key, value in given.items() if value is not None}
    with alone_but_for_nodes("running the pipeline"):
        apply_overrides(changes | (overrides or {}))
        check_before(ingest.name)
        stale = settled_stages()
        with pipeline_run("pipeline"):
            for place, stage_flow in enumerate(STAGES, start=1):
                if is_stale(stage_flow.name, stale):
                    run_flow(stage_flow)
                    call(commit_stage, stage_flow.name)
                    if place < len(STAGES):
                        stale = stale_stages(*(one.name for one in STAGES[place:]))
                if stage_flow is ingest:
                    check_settings_and_data()
        report_late()
