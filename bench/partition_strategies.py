"""Is a learnt partition better than stride? The teacher of params/ on data/windows, several seeds a strategy.

    python -m flows.ingest                      # or any earlier run: data/windows is read as it is
    python -m bench.partition_strategies --strategies coherent diverse stride random --seeds 1 2 3

Prints, a strategy: NE and AUC of the teacher over the evaluation windows (size-weighted, median over
seeds), and the two-sided Mann-Whitney U test of its NE against stride's (the DMT paper's test, section 5.2.3).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from recsys.config import load_settings
from recsys.distill.settings import TeacherSettings
from recsys.distill.teacher import train_teacher
from recsys.evaluation.settings import EvaluateSettings
from recsys.towers.partition_file import PARTITION_FILE
from recsys.towers.probe import learn_partition
from recsys.towers.settings import PartitionSettings
from recsys.training.settings import TrainSettings

PARAMS = Path("params")
WINDOWS = Path("data/windows")
BASELINE = "stride"


def headline(history: list[dict[str, Any]], first_window: int) -> tuple[float, float]:
    """Size-weighted NE and AUC from ``first_window`` on."""
    judged = history[first_window:]
    rows = [one["rows"] for one in judged]
    ne, auc = (float(np.average([one[key] for one in judged], weights=rows)) for key in ("ne", "auc"))
    return ne, auc


def measure(strategy: str, seed: int) -> tuple[float, float]:
    """NE and AUC of one teacher; ``seed`` is the probe's, the clustering's and the teacher's."""
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    settings = load_settings(PARAMS / "partition.yaml", PartitionSettings)
    teacher = load_settings(PARAMS / "teacher.yaml", TeacherSettings)
    never = teacher.model_copy(update={"seed": seed, "snapshot_every_windows": 10**9})
    judge = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "teacher").mkdir()
        chosen = settings.model_copy(update={"strategy": strategy, "seed": seed})
        learn_partition(WINDOWS, chosen, train, folder / "partition")
        history = train_teacher(WINDOWS, folder / "partition" / PARTITION_FILE, never, train, folder / "teacher")
    return headline(history, judge.first_evaluation_window)


def main() -> None:
    """Read the command line, alternate the strategies over the seeds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["coherent", "stride"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    strategies = list(dict.fromkeys([*given.strategies, BASELINE]))
    found: dict[str, list[tuple[float, float]]] = {strategy: [] for strategy in strategies}
    for seed in given.seeds:
        for strategy in strategies:
            found[strategy].append(measure(strategy, seed))
            print(
                f"seed {seed} {strategy}: NE {found[strategy][-1][0]:.5f}, AUC {found[strategy][-1][1]:.5f}", flush=True
            )
    print("\n| strategy | median NE | sd | median AUC | sd | p against stride |\n|---|---:|---:|---:|---:|---:|")
    for strategy, values in found.items():
        ne, auc = np.array(values).T
        p = mannwhitneyu(ne, np.array(found[BASELINE])[:, 0]).pvalue
        cells = [np.median(ne), np.std(ne, ddof=1), np.median(auc), np.std(auc, ddof=1)]
        shown = " | ".join(f"{cell:.5f}" for cell in cells)
        print(f"| {strategy} | {shown} | {'' if strategy == BASELINE else f'{p:.2g}'} |")


if __name__ == "__main__":
    main()
