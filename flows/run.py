"""``towerflow run``: raw logs to compared, registered students; stages that are up to date are
skipped."""

import argparse

from flows.command_line import add_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the pipeline and print the comparison."""
    from flows.pipeline import main

    main(dict(options.overrides))
