"""Register the better arm of each student in MLflow: reports/registration.json."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.calling import call
from tasks.pipeline_run import stage_run
from tasks.project import alone
from tasks.registry import register_students
from tasks.shown import flow_run_name, tell_of_failure


@flow(name="register", flow_run_name=flow_run_name("register"), on_failure=[tell_of_failure])
def register() -> None:
    """Register the better arm of each student in MLflow: reports/registration.json."""
    with alone("running register"), stage_run():
        call(register_students)


if __name__ == "__main__":
    run_stage_command(register)
