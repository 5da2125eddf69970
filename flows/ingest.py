"""Cut raw logs into windows of event time: data/windows."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.calling import call
from tasks.ingest import ingest_windows
from tasks.project import alone
from tasks.shown import flow_run_name, tell_of_failure


@flow(name="ingest", flow_run_name=flow_run_name("ingest"), on_failure=[tell_of_failure])
def ingest() -> None:
    """Cut raw logs into windows of event time: data/windows."""
    with alone("running ingest"):
        call(ingest_windows)


if __name__ == "__main__":
    run_stage_command(ingest)
