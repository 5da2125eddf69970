"""Log the teacher's scores for later windows: data/scores."""

from prefect import flow

from flows.command_line import run_stage_command
from tasks.calling import call
from tasks.distillation import score_all_windows


@flow(name="augment")
def augment() -> None:
    """Log the teacher's scores for later windows: data/scores."""
    call(score_all_windows)


if __name__ == "__main__":
    run_stage_command(augment)
