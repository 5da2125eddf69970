"""Two runs, arms or registered models on the same rows: paired differences with intervals."""

import argparse

from flows.command_line import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two sides, the first window and the task."""
    what = (
        "the folder of a run, an arm (models/students/feed/plain) or a model, a folder of "
        "predictions, or models:/NAME@ALIAS"
    )
    parser.add_argument("first", metavar="A", help=what)
    parser.add_argument("second", metavar="B", help="as A; differences are B - A")
    parser.add_argument(
        "--first-window",
        type=int,
        metavar="N",
        help="index of the first window to compare, from 0; default: "
        "evaluate.first_evaluation_window",
    )
    parser.add_argument("--task", help="compare this task; default: the models' main task")


def run(options: argparse.Namespace) -> None:
    """Compare, and print a table."""
    from tasks.comparing import compare_named

    compare_named(options.first, options.second, options.first_window, options.task)


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
