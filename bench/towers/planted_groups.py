"""Does the coherent partition find the planted groups of the generated stream? The curve over rows.

    python -m bench.towers.planted_groups --results planted.json --rows 240000 480000 1000000 \\
        --seeds 0 1 2
    python -m bench.towers.planted_groups --results planted.json --rows 240000 480000 \\
        --recipes factorization --epochs 3 --stream-seed 7 --seeds 0 1 2 --write

For each number of rows the stream of params/datasets/synthetic_sparse.yaml is made anew and the
partition stage run on all of its windows, once as a ranker probe with the paper's plain recipe and
once with the recipe found here. Prints the median adjusted Rand index (1: the four planted groups
of four; 0: chance), all values.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from bench.shared.progressive import MORE_TO_DO, Results, resumable_parser
from bench.shared.report import machine_lines
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, load_dataset
from recsys.towers.probe import learn_partition
from recsys.towers.settings import TowersSettings
from recsys.training.settings import TrainSettings

PARAMS = Path("params")
REPORT = Path("docs/benchmarks/planted_groups.md")
STREAM = "params"
THREADS = "OMP_NUM_THREADS"
COMMAND = (
    "python -m bench.towers.planted_groups --results planted.json --write   "
    "# the calls that filled it: see its help"
)
NOTES = [
    "The generated stream has four planted groups of four features. ARI: adjusted Rand index of "
    "the learned towers",
    "and these groups, 1 for the same, 0 for chance. The probe sees the labels of all rows, "
    "`epochs` times over.",
    "The recipe `factorization` was chosen on the stream of params/; the other stream seeds had no "
    "part in it.",
]
RECIPES: dict[str, dict[str, Any]] = {
    "ranker, absolute": {"affinity_mean": "absolute"},
    "ranker, signed": {"affinity_mean": "signed"},
    "factorization": {
        "probe": "factorization",
        "affinity_mean": "squared",
        "affinity_centred": True,
        "stretch_distances": True,
        "dimensions": 3,
        "balance_ratio": 1.0,
    },
}


def make_windows(rows: int, stream_seed: int | None, folder: Path) -> tuple[Path, Schema]:
    """The generated stream of ``rows`` rows in ``folder``/windows."""
    data = load_settings(PARAMS / "data.yaml", DataSettings).model_copy(
        update={"dataset": "synthetic_sparse"}
    )
    dataset = load_dataset(data, PARAMS / "datasets")
    assert dataset.synthetic is not None
    changed = {"rows": rows} if stream_seed is None else {"rows": rows, "seed": stream_seed}
    dataset = dataset.model_copy(update={"synthetic": dataset.synthetic.model_copy(update=changed)})
    windows, oracle = folder / "windows", folder / "oracle"
    windows.mkdir(parents=True)
    oracle.mkdir()
    ingest(data, dataset, windows, oracle)
    return windows, Schema.load(windows)


def rand_index(
    windows: Path, schema: Schema, recipe: dict[str, Any], train: TrainSettings, folder: Path
) -> float:
    """Adjusted Rand index of the partition that ``recipe`` learns on all of ``windows``."""
    settings = load_settings(PARAMS / "towers.yaml", TowersSettings).partition
    update = {"probe_windows": len(schema.windows), "strategy": "coherent", "towers": 4, **recipe}
    partition = learn_partition(windows, settings.model_copy(update=update), train, folder)
    tower = {name: index for index, members in enumerate(partition.towers) for name in members}
    names = list(schema.planted_groups)
    return float(
        adjusted_rand_score(
            [schema.planted_groups[name] for name in names], [tower[name] for name in names]
        )
    )


def work(
    given: argparse.Namespace, train: TrainSettings, folder: Path
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is to be measured: all recipes and seeds on a stream, then the next; made when first
    asked for."""
    for rows in given.rows:
        made = lru_cache(partial(make_windows, rows, given.stream_seed, folder / str(rows)))
        for recipe in given.recipes:
            for epochs in given.epochs:
                for seed in given.seeds:
                    stream = STREAM if given.stream_seed is None else given.stream_seed
                    key = f"{stream}/{rows}/{recipe}/{epochs}/{seed}"
                    chosen = {**RECIPES[recipe], "probe_epochs": epochs, "seed": seed}
                    yield key, partial(measure, made, chosen, train, folder / key.replace("/", "-"))


def measure(
    made: Callable[[], tuple[Path, Schema]],
    recipe: dict[str, Any],
    train: TrainSettings,
    folder: Path,
) -> float:
    """The Rand index of one recipe on a stream that is made if it is not there."""
    windows, schema = made()
    return rand_index(windows, schema, recipe, train, folder)


def table(values: dict[str, float]) -> list[str]:
    """A row a stream, number of rows, recipe and number of epochs, in Markdown."""
    found: dict[tuple[str, int, str, int], list[float]] = {}
    for key, value in values.items():
        stream, rows, recipe, epochs, _ = key.split("/")
        found.setdefault((stream, int(rows), recipe, int(epochs)), []).append(value)
    lines = [
        "| stream seed | rows | recipe | epochs | median ARI | all |",
        "|---|---:|---|---:|---:|---|",
    ]
    for (stream, rows, recipe, epochs), ones in sorted(found.items()):
        every = " ".join(f"{value:.2f}" for value in ones)
        lines.append(
            f"| {stream} | {rows:,} | {recipe} | {epochs} | {np.median(ones):.2f} | {every} |"
        )
    return lines


def main() -> None:
    """Read the command line, measure, print one row per number of rows and recipe."""
    parser = resumable_parser(__doc__)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[240_000, 480_000, 1_000_000, 2_000_000, 3_000_000]
    )
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--epochs", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of the probe and the clustering"
    )
    parser.add_argument("--stream-seed", type=int, help="another stream than that of params/")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument(
        "--write", action="store_true", help=f"write {REPORT}, with all that the file holds"
    )
    given = parser.parse_args()
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    train = train.model_copy(update={"world_size": 1, "global_batch_size": given.batch})
    results = Results(given.results)
    with tempfile.TemporaryDirectory() as name:
        whole = results.fill(work(given, train, Path(name)), given.minutes)
    lines = table(results.values)
    print("\n".join(lines if whole else [MORE_TO_DO]))
    if given.write:
        head = machine_lines("Planted groups", COMMAND, {THREADS: os.environ.get(THREADS, "unset")})
        REPORT.write_text("\n".join([*head, "", *NOTES, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
