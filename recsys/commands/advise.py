"""``python -m recsys.towers advise <model.yaml> --cluster <cluster.yaml> --hosts T``."""

import argparse
import sys
from pathlib import Path

from recsys.commands.arguments import positive, run_command
from recsys.config import load_settings

DEFAULT_ROWS = 12


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and exit status 2."""
    options = _parser().parse_args(arguments)
    return run_command(_advise, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recsys.towers", description="Disaggregated towers."
    )
    commands = parser.add_subparsers(required=True, metavar="{advise}")
    advise = commands.add_parser(
        "advise", help="flat or towers on a cluster, how many, how narrow, and why"
    )
    advise.add_argument(
        "model", type=Path, help="a model and its batch, e.g. params/models/dcn_criteo.yaml"
    )
    advise.add_argument(
        "--cluster",
        type=Path,
        required=True,
        help="hosts and links, e.g. params/clusters/h100.yaml",
    )
    advise.add_argument("--hosts", type=positive, required=True, help="number of hosts")
    advise.add_argument(
        "--batch-size", type=positive, help="examples a rank, instead of the model file's"
    )
    advise.add_argument("--rows", type=positive, default=DEFAULT_ROWS, help="choices to print")
    return parser


def _advise(options: argparse.Namespace) -> None:
    from rich.console import Console

    from recsys.towers.advice import AdvisedModel, check_hosts, choices
    from recsys.towers.advice_report import print_advice
    from recsys.towers.step_costs import TowerCluster

    model = load_settings(options.model, AdvisedModel)
    if options.batch_size:
        model = model.model_copy(update={"batch_size": options.batch_size})
    cluster = load_settings(options.cluster, TowerCluster)
    check_hosts(options.hosts, model.features, options.model)
    print_advice(choices(model, cluster, options.hosts), cluster, options.rows, Console())


if __name__ == "__main__":
    sys.exit(main())
