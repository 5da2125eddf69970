"""The teacher's snapshots: python -m flows.snapshots list, or withdraw NAME."""

import argparse

from flows.command_line import apply_or_exit


def main() -> None:
    """Read the command line and list or withdraw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--stream", action="store_true", help="those of the stream, not of the batch pipeline"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="each snapshot, its state and what it has scored")
    withdraw = commands.add_parser("withdraw", help="take one back and name what it has touched")
    withdraw.add_argument("name")
    given = parser.parse_args()

    def run() -> None:
        from tasks.snapshots import BATCH, STREAMED, snapshot_table, withdraw_snapshot

        of = STREAMED if given.stream else BATCH
        lines = snapshot_table(of) if given.command == "list" else withdraw_snapshot(given.name, of)
        print("\n".join(lines))

    apply_or_exit(run)


if __name__ == "__main__":
    main()
