"""Does the coherent partition find the planted groups of the generated stream? The curve over rows.

    python -m bench.planted_groups --rows 240000 480000 1000000 2000000 3000000 --seeds 1 2 3

For each number of rows the stream of params/datasets/synthetic.yaml is made anew and the partition stage
run on all of its windows, once as a ranker probe with the paper's plain recipe and once with the recipe
found here. Prints the median adjusted Rand index (1: the four planted groups of four; 0: chance), all values.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, load_dataset
from recsys.towers.probe import learn_partition
from recsys.towers.settings import PartitionSettings
from recsys.training.settings import TrainSettings

PARAMS = Path("params")
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
    data = load_settings(PARAMS / "data.yaml", DataSettings).model_copy(update={"dataset": "synthetic"})
    dataset = load_dataset(data, PARAMS / "datasets")
    assert dataset.synthetic is not None
    changed = {"rows": rows} if stream_seed is None else {"rows": rows, "seed": stream_seed}
    dataset = dataset.model_copy(update={"synthetic": dataset.synthetic.model_copy(update=changed)})
    windows, oracle = folder / "windows", folder / "oracle"
    windows.mkdir()
    oracle.mkdir()
    ingest(data, dataset, windows, oracle)
    return windows, Schema.load(windows)


def rand_index(windows: Path, schema: Schema, recipe: dict[str, Any], train: TrainSettings, folder: Path) -> float:
    """Adjusted Rand index of the partition that ``recipe`` learns on all of ``windows``."""
    settings = load_settings(PARAMS / "partition.yaml", PartitionSettings)
    update = {"probe_windows": len(schema.windows), "strategy": "coherent", "towers": 4, **recipe}
    partition = learn_partition(windows, settings.model_copy(update=update), train, folder)
    tower = {name: index for index, members in enumerate(partition.towers) for name in members}
    names = list(schema.planted_groups)
    return float(adjusted_rand_score([schema.planted_groups[name] for name in names], [tower[name] for name in names]))


def main() -> None:
    """Read the command line, print a row a number of rows and recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[240_000, 480_000, 1_000_000, 2_000_000, 3_000_000])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--epochs", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the probe and the clustering")
    parser.add_argument("--stream-seed", type=int, help="another stream than that of params/")
    parser.add_argument("--batch", type=int, default=1024)
    given = parser.parse_args()
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    train = train.model_copy(update={"world_size": 1, "global_batch_size": given.batch})
    print("| rows | recipe | epochs | median ARI | all |\n|---:|---|---:|---:|---|", flush=True)
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            windows, schema = make_windows(rows, given.stream_seed, folder)
            for recipe in given.recipes:
                for epochs in given.epochs:
                    chosen = {**RECIPES[recipe], "probe_epochs": epochs}
                    found = [
                        rand_index(
                            windows, schema, {**chosen, "seed": seed}, train, folder / f"{recipe}-{epochs}-{seed}"
                        )
                        for seed in given.seeds
                    ]
                    values = " ".join(f"{value:.2f}" for value in found)
                    print(f"| {rows:,} | {recipe} | {epochs} | {np.median(found):.2f} | {values} |", flush=True)


if __name__ == "__main__":
    main()
