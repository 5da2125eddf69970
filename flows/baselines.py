"""Train what the students have to beat: models/baselines."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.baselines import train_all_baselines
from tasks.calling import call
from tasks.pipeline_run import stage_run
from tasks.project import alone
from tasks.shown import flow_run_name, tell_of_failure


@flow(name="baselines", flow_run_name=flow_run_name("baselines"), on_failure=[tell_of_failure])
def baselines() -> None:
    """Train what the students have to beat: models/baselines."""
    with alone("running baselines"), stage_run():
        call(train_all_baselines)


if __name__ == "__main__":
    run_stage_command(baselines)
