"""The main job: raw logs to compared, registered students; stages that are up to date are
skipped."""

from flows.command_line import apply_or_exit, apply_overrides, parse_overrides

# Before Prefect and torch are imported, so that --help answers at once.
overrides_given = parse_overrides(__doc__ or "") if __name__ == "__main__" else None

from prefect import flow

from flows.augment import augment
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.partition import partition
from flows.register import register
from flows.students import students
from flows.teacher import teacher
from recsys.evaluation.report import print_report
from tasks.checks import check_before, check_settings_and_data
from tasks.project import EVALUATION
from tasks.versioning import CACHED, check_stage, commit_stage

STAGES = (ingest, partition, teacher, augment, students, evaluate, register)


@flow(name="pipeline")
def pipeline(overrides: dict[str, str] | None = None) -> None:
    """Run every stage that is not up to date, in order, and record each in dvc.lock.

    Args:
        overrides: values to write into params/ first, e.g. ``{"data.dataset": "ebnerd_demo"}``.
    """
    apply_overrides(overrides or {})
    check_before(ingest.name)
    for stage_flow in STAGES:
        if check_stage(stage_flow.name, return_state=True).name != CACHED:
            stage_flow()
            commit_stage(stage_flow.name)
        if stage_flow is ingest:
            check_settings_and_data()


def main() -> None:
    """Run the pipeline from the command line and print the comparison."""
    overrides = parse_overrides(__doc__ or "") if overrides_given is None else overrides_given
    apply_or_exit(lambda: pipeline(overrides))
    print_report(EVALUATION)
    print(
        "Compare the runs:  make mlflow    then open http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART"
    )
    print("See the flows:     make prefect   then open http://127.0.0.1:4200")


if __name__ == "__main__":
    main()
