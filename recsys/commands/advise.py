"""``towerflow advise MODEL --cluster CLUSTER --hosts T``."""

import argparse
from pathlib import Path

from recsys.commands.arguments import positive

DEFAULT_ROWS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the cluster and how many choices to show."""
    parser.add_argument(
        "model", type=Path, help="a model and its batch, e.g. params/models/dcn_criteo.yaml"
    )
    parser.add_argument(
        "--cluster",
        type=Path,
        required=True,
        help="hosts and links, e.g. params/clusters/h100.yaml",
    )
    parser.add_argument("--hosts", type=positive, required=True, help="number of hosts")
    parser.add_argument(
        "--batch-size", type=positive, help="examples per rank, instead of the model file's"
    )
    parser.add_argument("--rows", type=positive, default=DEFAULT_ROWS, help="choices to print")


def run(options: argparse.Namespace) -> None:
    """Compute the cost of every number of towers and every width, and print them, best first.

    Raises:
        InputError: a file or the number of hosts is wrong.
    """
    from rich.console import Console

    from recsys.config import load_settings
    from recsys.towers.advice import AdvisedModel, check_hosts, choices
    from recsys.towers.advice_report import print_advice
    from recsys.towers.step_costs import TowerCluster

    model = load_settings(options.model, AdvisedModel)
    if options.batch_size:
        model = model.model_copy(update={"batch_size": options.batch_size})
    cluster = load_settings(options.cluster, TowerCluster)
    check_hosts(options.hosts, model.features, options.model)
    print_advice(choices(model, cluster, options.hosts), cluster, options.rows, Console())
