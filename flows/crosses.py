"""``towerflow crosses``: choose pairs of columns by their gain on early windows."""

import argparse

from flows.command_line import run_program
from recsys.commands.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bounds and ``--write``."""
    parser.add_argument("--most", type=positive, help="pairs to choose at most; default: 3")
    parser.add_argument(
        "--largest",
        type=positive,
        help="skip pairs with more distinct values in the early windows; default: 200000",
    )
    parser.add_argument(
        "--write", action="store_true", help="add the chosen pairs to the dataset's YAML"
    )


def run(options: argparse.Namespace) -> None:
    """Choose."""
    from recsys.baselines.crosses import CrossChoiceSettings
    from tasks.crosses import propose_crosses

    given = {
        name: value for name in ("most", "largest") if (value := getattr(options, name)) is not None
    }
    propose_crosses(CrossChoiceSettings(**given), options.write)


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
