"""``towerflow stream``: new windows as they come."""

import argparse

from flows.command_line import add_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, ``--watch`` and ``--tell``."""
    add_overrides(parser)
    stay = parser.add_mutually_exclusive_group()
    stay.add_argument(
        "--watch", action="store_true", help="keep running, and process new windows as they arrive"
    )
    stay.add_argument(
        "--tell",
        action="store_true",
        help="keep running, and tell Prefect's server when the raw log has grown; its automation "
        "then starts stream/local on a worker",
    )


def run(options: argparse.Namespace) -> None:
    """Take the windows that exist, or stay and watch."""
    from flows.stream import main

    main(dict(options.overrides), options.watch, options.tell)
