"""The teacher's snapshots: list them, or withdraw one."""

import argparse

from flows.command_line import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions ``list`` and ``withdraw NAME``."""
    parser.add_argument(
        "--stream", action="store_true", help="use the stream's snapshots instead of the pipeline's"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list each snapshot, its state and what it has scored")
    withdraw = actions.add_parser("withdraw", help="withdraw one and name what it affected")
    withdraw.add_argument("name")


def run(options: argparse.Namespace) -> None:
    """List, or withdraw."""
    from tasks.snapshots import BATCH, STREAMED, snapshot_table, withdraw_snapshot

    of = STREAMED if options.stream else BATCH
    lines = snapshot_table(of) if options.action == "list" else withdraw_snapshot(options.name, of)
    print("\n".join(lines))


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
