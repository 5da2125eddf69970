"""Log the teacher's scores for later windows: data/scores."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from prefect import flow

from flows.command_line import run_stage_command
from recsys.config import load_settings
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.scoring import WindowPlan
from tasks.augmentation import (
    augment_settings_file,
    combine_scores,
    plan_scores,
    publish_scores,
    score_candidates,
    score_share,
)
from tasks.calling import call, is_tracked, run_flow
from tasks.nodes import alone_but_for_nodes
from tasks.pipeline_run import stage_run
from tasks.runners import one_server, task_runner
from tasks.shown import flow_run_name, tell_of_failure


@flow(name="score windows", flow_run_name="score the windows")
def score_shares(shares: list[list[WindowPlan]]) -> None:
    """Score shares of the windows in parallel, on the task runner that params/augment.yaml
    names."""
    score_share.map(shares).result()


@flow(name="augment", flow_run_name=flow_run_name("augment"), on_failure=[tell_of_failure])
def augment() -> None:
    """Log the teacher's scores for later windows: data/scores."""
    with alone_but_for_nodes("running augment"), stage_run():
        settings = load_settings(augment_settings_file(), AugmentSettings)
        if settings.uses_own:
            _score(settings)
        call(score_candidates)
        if settings.teacher != "own":
            call(combine_scores)
        call(publish_scores)


def _score(settings: AugmentSettings) -> None:
    """Score what is not yet scored with the project's own teacher."""
    shares = call(plan_scores)
    if is_tracked() or settings.runner != "threads":
        runner = task_runner(settings.runner, settings.parallel_tasks, str(augment_settings_file()))
        with nullcontext() if settings.runner == "threads" else one_server():
            run_flow(score_shares.with_options(task_runner=runner), shares)
    else:
        with ThreadPoolExecutor(settings.parallel_tasks) as threads:
            list(threads.map(score_share.fn, shares))


if __name__ == "__main__":
    run_stage_command(augment)
