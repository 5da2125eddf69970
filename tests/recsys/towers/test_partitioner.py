"""The partitioner finds planted groups and keeps its promises on sizes."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from recsys.config import InputError
from recsys.towers.figures import draw_affinity, draw_map
from recsys.towers.partition_file import Partition
from recsys.towers.partitioner import balanced_clusters, partition_by_affinity, partition_without_probe
from recsys.towers.settings import PartitionSettings

FEATURES = [f"f{i}" for i in range(12)]
GROUPS = [i % 3 for i in range(12)]
SETTINGS = PartitionSettings(towers=3, steps=300, restarts=2)


def planted(noise: float = 0.05) -> np.ndarray:
    draw = np.random.default_rng(0)
    same = np.equal.outer(GROUPS, GROUPS)
    affinity = np.where(same, 0.8, 0.2) + draw.normal(0, noise, (12, 12))
    affinity = np.clip((affinity + affinity.T) / 2, 0, 1)
    np.fill_diagonal(affinity, 1)
    return affinity


def labels(partition: Partition) -> list[int]:
    return [next(i for i, tower in enumerate(partition.towers) if name in tower) for name in FEATURES]


def test_coherent_recovers_planted_groups() -> None:
    partition = partition_by_affinity(FEATURES, planted(), SETTINGS)
    assert adjusted_rand_score(GROUPS, labels(partition)) == 1.0
    partition.check_features(FEATURES)
    assert partition == partition_by_affinity(FEATURES, planted(), SETTINGS)


def test_diverse_splits_planted_groups() -> None:
    settings = SETTINGS.model_copy(update={"strategy": "diverse"})
    assert adjusted_rand_score(GROUPS, labels(partition_by_affinity(FEATURES, planted(), settings))) < 0.3


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 3.0])
def test_sizes_are_balanced(ratio: float) -> None:
    points = np.random.default_rng(1).normal(size=(26, 2)) ** 3
    sizes = np.bincount(balanced_clusters(points, 4, ratio, seed=0), minlength=4)
    assert sizes.sum() == 26
    assert sizes.max() <= max(ratio * sizes.min(), sizes.min() + 1)


@pytest.mark.parametrize("strategy", ["stride", "random"])
def test_baselines_place_each_feature_once(strategy: str) -> None:
    settings = SETTINGS.model_copy(update={"strategy": strategy})
    partition_without_probe(FEATURES, settings).check_features(FEATURES)


def test_mistakes_are_input_errors() -> None:
    with pytest.raises(InputError, match="towers is 13"):
        partition_by_affinity(FEATURES, planted(), PartitionSettings(towers=13))
    manual = PartitionSettings(strategy="manual", manual_towers=[["f0"], ["f1"]])
    with pytest.raises(InputError, match="'f10' is in no tower"):
        partition_without_probe(FEATURES, manual)
    with pytest.raises(InputError, match="more than one"):
        Partition("manual", [["a"], ["a"]], []).check_features(["a"])


def test_file_and_figures_are_reproducible(tmp_path: Path) -> None:
    partition = partition_by_affinity(FEATURES, planted(), SETTINGS)
    for name in ("a", "b"):
        partition.save(tmp_path / f"{name}.json")
        draw_affinity(partition, tmp_path / f"{name}-affinity.png")
        draw_map(partition, tmp_path / f"{name}-map.png")
    assert Partition.load(tmp_path / "a.json") == partition
    for kind in (".json", "-affinity.png", "-map.png"):
        assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()
