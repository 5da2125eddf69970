"""Train the students with and without distillation: models/students."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.calling import call
from tasks.nodes import alone_but_for_nodes
from tasks.pipeline_run import stage_run
from tasks.shown import flow_run_name, tell_of_failure
from tasks.students import train_all_students


@flow(name="students", flow_run_name=flow_run_name("students"), on_failure=[tell_of_failure])
def students() -> None:
    """Train the students with and without distillation: models/students."""
    with alone_but_for_nodes("running students"), stage_run():
        call(train_all_students)


if __name__ == "__main__":
    run_stage_command(students)
