"""Is a learned partition better than stride? The teacher of params/ with each, several seeds, the
DMT paper's test.

    towerflow ingest                      # or any earlier run: data/windows is read as it is
    python -m bench.towers.partition_strategies --results stream.json --seeds 1 2 3 4 5 6 7 8 9

Prints, a strategy: NE and AUC of the teacher over the evaluation windows (pooled; median over
seeds), how many of the planted groups' pairs it keeps together (adjusted Rand index, on the
generated stream), and the two-sided Mann-Whitney U test against stride (the paper's, section
5.2.3). ``--minutes`` stops early; the same command goes on. One rank; the tower modules are
replicated, as the tower transform is exact.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.metrics import adjusted_rand_score

from bench.shared.progressive import (
    MORE_TO_DO,
    Results,
    Rows,
    fill,
    read_rows,
    resumable_parser,
    validate_progressively,
)
from bench.towers.planted_groups import RECIPES
from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.evaluation.settings import EvaluateSettings
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.towers.partitioner import partition_by_affinity, partition_without_probe
from recsys.towers.probe import train_probe
from recsys.towers.settings import PROBED, TowersSettings
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings
from tasks.teacher_settings import load_teacher

PARAMS = Path("params")
BASELINE = "stride"
PAPER: dict[str, Any] = {
    "strategy": "coherent",
    **RECIPES["ranker, signed"],
    "probe": "ranker",
    "dimensions": 2,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "coherent": {**PAPER, "stretch_distances": False, "affinity_centred": False, "probe_epochs": 1},
    "coherent, factorization": {
        **RECIPES["factorization"],
        "strategy": "coherent",
        "balance_ratio": 2.0,
        "probe_epochs": 3,
    },
    **{name: {"strategy": name} for name in ("diverse", "random", "greedy", BASELINE)},
}


SMALL: dict[str, Any] = {
    "embedding_dimension": 16,
    "dense_layers": [64, 32],
    "over_layers": [128, 64],
    "cross_layers": 2,
    "cross_rank": 32,
    "tower_dimension": 16,
}
SMALL_BATCH = 1024


def work(given: argparse.Namespace, results: Results) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is to be measured: the strategies alternate, a seed after the other."""
    rows = read_rows(
        given.windows, train_settings(given.small).global_batch_size, given.read_windows
    )
    for seed in given.seeds:
        for strategy in dict.fromkeys([*given.strategies, BASELINE]):
            yield f"{strategy}/{seed}", partial(measure, strategy, seed, rows, given)


def measure(strategy: str, seed: int, rows: Rows, given: argparse.Namespace) -> dict[str, Any]:
    """NE and AUC of one teacher; ``seed`` is the probe's, the clustering's and the teacher's."""
    train = train_settings(given.small)
    partition = learn(strategy, seed, given.windows, train)
    teacher, _ = load_teacher(PARAMS)
    judge = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    model = teacher.model.model_copy(update=SMALL if given.small else {})
    ranker = build_ranker(rows.schema, model, partition, seed, table_device="meta")
    found = validate_progressively(
        ranker, rows, train, seed, judge.first_evaluation_window, partition
    )
    return {"ne": found["ne"], "auc": found["auc"], "rand": rand_index(partition, rows.schema)}


def learn(strategy: str, seed: int, windows_dir: Path, train: TrainSettings) -> Partition:
    """The partition of params/ but for the strategy and the seed."""
    settings = load_settings(PARAMS / "towers.yaml", TowersSettings).partition
    settings = settings.model_copy(update={**STRATEGIES[strategy], "seed": seed})
    features = [feature.name for feature in Schema.load(windows_dir).categorical]
    if settings.strategy not in PROBED:
        return partition_without_probe(features, settings)
    return partition_by_affinity(features, train_probe(windows_dir, settings, train), settings)


def rand_index(partition: Partition, schema: Schema) -> float | None:
    """Adjusted Rand index of the towers and the planted groups; None where nothing was planted."""
    planted = schema.planted_groups
    tower = {name: index for index, members in enumerate(partition.towers) for name in members}
    return (
        float(adjusted_rand_score([planted[n] for n in planted], [tower[n] for n in planted]))
        if planted
        else None
    )


def train_settings(small: bool) -> TrainSettings:
    """Those of params/ on one rank."""
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    update = {"world_size": 1, "overlap": False} | (
        {"global_batch_size": SMALL_BATCH} if small else {}
    )
    return train.model_copy(update=update)


def table(values: dict[str, Any]) -> str:
    """A row a strategy, in Markdown."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, one in values.items():
        found.setdefault(key.rpartition("/")[0], []).append(one)
    columns = [
        "seeds",
        "median NE",
        "sd",
        "p against stride",
        "median AUC",
        "sd",
        "p against stride",
        "Rand index",
    ]
    lines = [f"| strategy | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for strategy, rows in sorted(found.items(), key=lambda item: item[0] == BASELINE):
        cells = [str(len(rows))]
        for metric in ("ne", "auc"):
            own, other = ([row[metric] for row in group] for group in (rows, found[BASELINE]))
            p = "" if strategy == BASELINE else f"{mannwhitneyu(own, other).pvalue:.2g}"
            cells += [f"{np.median(own):.5f}", f"{np.std(own, ddof=1):.5f}", p]
        rands = [row["rand"] for row in rows if row["rand"] is not None]
        cells.append(f"{np.median(rands):.2f}" if rands else "")
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, alternate the strategies over the seeds, print the table."""
    parser = resumable_parser(__doc__)
    parser.add_argument("--windows", type=Path, default=Path("data/windows"))
    parser.add_argument("--read-windows", type=int, help="the first so many; all by default")
    parser.add_argument(
        "--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES)[:2]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 10)))
    parser.add_argument(
        "--small", action="store_true", help="a smaller model and larger batches: SMALL"
    )
    given = parser.parse_args()
    whole = launch(fill, (work, given, given.results), train_settings(given.small))[0]
    print(table(Results(given.results).values) if whole else MORE_TO_DO)


if __name__ == "__main__":
    main()
