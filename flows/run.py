"""``towerflow run``: raw logs to compared, registered students; stages that are up to date are
skipped."""

import argparse

from flows.command_line import add_overrides, apply_overrides, say_errors_once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the pipeline and print the comparison.

    Prefect, torch and MLflow are imported only if there is something to do.
    """
    from recsys.evaluation.printed import print_report
    from tasks.nodes import alone_but_for_nodes
    from tasks.project import EVALUATION
    from tasks.versioning import settled_stages

    with alone_but_for_nodes("running the pipeline"):
        apply_overrides(dict(options.overrides))
        if settled_stages():
            print(
                "Eight stages, from the raw log to registered students; those that are up to date "
                "are skipped. Ctrl-C stops it; the same command resumes."
            )
            from tasks.temporary_server import starting

            with starting():
                # Prefect first: FBGEMM's import gives the root logger a handler, which Prefect
                # would leave in charge
                from flows.pipeline import pipeline
                from tasks.calling import run_flow
                from tasks.checks import check_before

                check_before("ingest")
            say_errors_once(with_progress=True)
            run_flow(pipeline)
        else:
            print("Nothing to do: every stage is up to date.")
    print_report(EVALUATION)
    print(f"The report:       {EVALUATION / 'report.html'} (one file, with figures)")
    print(
        "Keep this result: git add dvc.lock params && git commit   (dvc.lock names the data, "
        "settings and code that made it)"
    )
    print(
        "Compare the models: make mlflow   then open http://127.0.0.1:5000/#/experiments/1/runs?"
        "searchFilter=tags.kind%3D%22evaluation%22&compareRunsMode=CHART"
    )
    print("See the flows:      make prefect  then open http://127.0.0.1:4200")
