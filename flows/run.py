"""The main job: raw logs to compared, registered students; stages that are up to date are
skipped."""

from flows.command_line import apply_or_exit, apply_overrides, parse_overrides


def main() -> None:
    """Run the pipeline from the command line and print the comparison.

    Prefect, torch and MLflow are imported only where there is something to do.
    """
    overrides = parse_overrides(__doc__ or "")
    apply_or_exit(lambda: _run(overrides))


def _run(overrides: dict[str, str]) -> None:
    from recsys.evaluation.printed import print_report
    from tasks.project import EVALUATION
    from tasks.versioning import settled_stages

    apply_overrides(overrides)
    if settled_stages():
        from flows.pipeline import pipeline

        pipeline()
    else:
        print("Nothing to do: every stage is up to date.")
    print_report(EVALUATION)
    print(
        "Compare the runs:  make mlflow    then open http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART"
    )
    print("See the flows:     make prefect   then open http://127.0.0.1:4200")
