"""Decide which features go into which tower: models/partition."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.calling import call
from tasks.nodes import alone_but_for_nodes
from tasks.pipeline_run import stage_run
from tasks.shown import flow_run_name, tell_of_failure
from tasks.towers import partition_features


@flow(name="partition", flow_run_name=flow_run_name("partition"), on_failure=[tell_of_failure])
def partition() -> None:
    """Decide which features go into which tower: models/partition."""
    with alone_but_for_nodes("running partition"), stage_run():
        call(partition_features)


if __name__ == "__main__":
    run_stage_command(partition)
