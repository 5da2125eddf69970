"""Compare the students, window by window: reports/evaluation."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.calling import call
from tasks.evaluation import evaluate_students
from tasks.pipeline_run import stage_run
from tasks.project import alone
from tasks.shown import flow_run_name, tell_of_failure


@flow(name="evaluate", flow_run_name=flow_run_name("evaluate"), on_failure=[tell_of_failure])
def evaluate() -> None:
    """Compare the students, window by window: reports/evaluation."""
    with alone("running evaluate"), stage_run():
        call(evaluate_students)


if __name__ == "__main__":
    run_stage_command(evaluate)
