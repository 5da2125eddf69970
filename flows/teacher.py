"""Train the teacher in time order, with snapshots: models/teacher."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.calling import call
from tasks.nodes import alone_but_for_nodes
from tasks.pipeline_run import stage_run
from tasks.shown import flow_run_name, tell_of_failure
from tasks.teacher import train_teacher_model


@flow(name="teacher", flow_run_name=flow_run_name("teacher"), on_failure=[tell_of_failure])
def teacher() -> None:
    """Train the teacher in time order, with snapshots: models/teacher."""
    with alone_but_for_nodes("running teacher"), stage_run():
        call(train_teacher_model)


if __name__ == "__main__":
    run_stage_command(teacher)
