"""``towerflow stream``: new windows as they come."""

import argparse

from flows.command_line import add_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--set`` and ``--watch``."""
    add_overrides(parser)
    parser.add_argument(
        "--watch", action="store_true", help="keep running, and process new windows as they arrive"
    )


def run(options: argparse.Namespace) -> None:
    """Take what is there, or stay and watch."""
    from flows.stream import main

    main(dict(options.overrides), options.watch)
