"""The partitioner finds planted groups and keeps its promises on sizes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from recsys.config import InputError
from recsys.models.partition_file import Partition
from recsys.towers.partition_figures import draw_affinity, draw_map
from recsys.towers.partitioner import (
    balanced_clusters,
    greedy_clusters,
    partition_by_affinity,
    partition_without_probe,
    weight_bound,
)
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
    return [
        next(i for i, tower in enumerate(partition.towers) if name in tower) for name in FEATURES
    ]


def test_coherent_recovers_planted_groups() -> None:
    partition = partition_by_affinity(FEATURES, planted(), SETTINGS)
    assert adjusted_rand_score(GROUPS, labels(partition)) == 1.0
    partition.check_features(FEATURES)
    assert partition == partition_by_affinity(FEATURES, planted(), SETTINGS)


def test_diverse_splits_planted_groups() -> None:
    settings = SETTINGS.model_copy(update={"strategy": "diverse"})
    assert (
        adjusted_rand_score(GROUPS, labels(partition_by_affinity(FEATURES, planted(), settings)))
        < 0.3
    )


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 3.0])
def test_sizes_are_balanced(ratio: float) -> None:
    points = np.random.default_rng(1).normal(size=(26, 2)) ** 3
    sizes = np.bincount(balanced_clusters(points, 4, ratio, seed=0), minlength=4)
    assert sizes.sum() == 26
    assert sizes.max() <= max(ratio * sizes.min(), sizes.min() + 1)


def loads(partition: Partition, weights: np.ndarray) -> list[float]:
    return [
        float(sum(weights[FEATURES.index(name)] for name in tower)) for tower in partition.towers
    ]


@pytest.mark.parametrize("strategy", ["coherent", "diverse", "spectral"])
@pytest.mark.parametrize("balance", ["count", "bytes"])
@given(seed=st.integers(0, 2**31 - 1), towers=st.integers(1, 6), ratio=st.floats(1.0, 3.0))
@hypothesis_settings(max_examples=8)
def test_any_affinity_gives_a_whole_balanced_partition(
    strategy: str, balance: str, seed: int, towers: int, ratio: float
) -> None:
    draw = np.random.default_rng(seed)
    noise = draw.uniform(size=(12, 12))
    affinity = (noise + noise.T) / 2
    np.fill_diagonal(affinity, 1)
    weights = 10.0 ** draw.uniform(0, 4, 12)  # like table sizes: one may outweigh all others
    settings = PartitionSettings.model_validate(
        {
            "towers": towers,
            "strategy": strategy,
            "balance": balance,
            "balance_ratio": ratio,
            "steps": 20,
            "restarts": 1,
        }
    )
    partition = partition_by_affinity(FEATURES, affinity, settings, weights)
    partition.check_features(FEATURES)
    assert len(partition.towers) == towers
    assert all(partition.towers)
    if balance == "bytes":
        assert max(loads(partition, weights)) <= weight_bound(weights, towers, ratio) * (1 + 1e-6)
    else:
        sizes = [len(tower) for tower in partition.towers]
        assert max(sizes) <= max(ratio * min(sizes), min(sizes) + 1)
    assert partition == partition_by_affinity(FEATURES, affinity, settings, weights)


@pytest.mark.parametrize("strategy", ["coherent", "spectral"])
@pytest.mark.parametrize("balance", ["count", "bytes"])
@given(order=st.permutations(range(12)))
@hypothesis_settings(max_examples=8)
def test_the_order_of_features_does_not_change_who_stands_together(
    strategy: str, balance: str, order: list[int]
) -> None:
    weights = np.linspace(1, 2, 12)
    settings = SETTINGS.model_copy(update={"strategy": strategy, "balance": balance})
    affinity = planted()[np.ix_(order, order)]
    partition = partition_by_affinity(
        [FEATURES[i] for i in order], affinity, settings, weights[order]
    )
    expected = {
        frozenset(name for name, group in zip(FEATURES, GROUPS, strict=True) if group == g)
        for g in range(3)
    }
    assert {frozenset(tower) for tower in partition.towers} == expected


def test_a_weight_balance_is_kept_against_the_affinity() -> None:
    # One planted group holds most of the bytes: 32 of 40
    weights = np.where(np.equal(GROUPS, 0), 8.0, 1.0)
    settings = SETTINGS.model_copy(update={"balance": "bytes", "balance_ratio": 1.3})
    partition = partition_by_affinity(FEATURES, planted(), settings, weights)
    assert max(loads(partition, weights)) <= weight_bound(weights, 3, 1.3) < 32
    assert max(loads(partition_by_affinity(FEATURES, planted(), SETTINGS), weights)) == 32


def test_stretching_changes_distances_not_their_order() -> None:
    flat = 0.9 + planted() / 20  # all pairs alike to 4 %
    np.fill_diagonal(flat, 1)
    stretched = SETTINGS.model_copy(update={"stretch_distances": True})
    assert (
        adjusted_rand_score(GROUPS, labels(partition_by_affinity(FEATURES, flat, stretched))) == 1.0
    )


@given(weights=st.lists(st.floats(0.1, 1e6), min_size=6, max_size=30), clusters=st.integers(1, 6))
def test_greedy_weighs_at_most_a_mean_and_one_item(weights: list[float], clusters: int) -> None:
    load = np.bincount(
        greedy_clusters(np.array(weights), clusters), weights=weights, minlength=clusters
    )
    assert load.min() > 0
    assert load.max() <= sum(weights) / clusters + max(weights) + 1e-6


@pytest.mark.parametrize("strategy", ["stride", "random", "greedy"])
def test_baselines_place_each_feature_once(strategy: str) -> None:
    settings = SETTINGS.model_copy(update={"strategy": strategy})
    partition_without_probe(FEATURES, settings).check_features(FEATURES)


def test_mistakes_are_input_errors() -> None:
    with pytest.raises(InputError, match=r"^PartitionSettings: key 'towers': is 13"):
        partition_by_affinity(FEATURES, planted(), PartitionSettings(towers=13))
    manual = PartitionSettings(strategy="manual", manual_towers=[["f0"], ["f1"]])
    with pytest.raises(
        InputError,
        match=r"PartitionSettings: key 'manual_towers': .*'f10' is in no tower",
    ):
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
