"""``towerflow run``: raw logs to compared, registered students; stages that are up to date are
skipped."""

import argparse

from flows.command_line import add_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the pipeline and print the comparison."""
    from flows.pipeline import pipeline
    from recsys.evaluation.report import print_report
    from tasks.project import EVALUATION

    pipeline(dict(options.overrides))
    print_report(EVALUATION)
    print(
        "Compare the runs:  make mlflow    then open "
        "http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART"
    )
    print("See the flows:     make prefect   then open http://127.0.0.1:4200")
