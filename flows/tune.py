"""``towerflow tune``: search better settings for the students, and write them into params/."""

import argparse

from flows.command_line import run_program
from recsys.commands.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to tune, the budget and ``--dry-run``."""
    parser.add_argument(
        "--what",
        nargs="+",
        default=["model"],
        metavar="SPACE",
        help="model, distillation, or another of 'spaces' in params/tune.yaml; default: model",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes", type=_minutes, help="roughly how long to search and check the result"
    )
    budget.add_argument(
        "--trials", type=positive, help="instead: end after this many trials of the study"
    )
    parser.add_argument(
        "--workers", type=positive, help="students trained in parallel, one thread each"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show better settings without writing to params/"
    )


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return minutes


def run(options: argparse.Namespace) -> None:
    """Tune."""
    from tasks.tuning import TuneOptions, tune_students

    tune_students(
        TuneOptions(options.what, options.minutes, options.trials, options.workers, options.dry_run)
    )


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
