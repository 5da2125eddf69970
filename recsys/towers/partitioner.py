"""The tower partitioner: affinity -> distances -> map -> balanced clusters (DMT, arXiv 2403.00877, section 3.3)."""

from typing import Any

import numpy as np
import torch
from k_means_constrained import KMeansConstrained
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.towers.partition_file import Partition
from recsys.towers.settings import PartitionSettings

Array = NDArray[np.float64]
DECIMALS = 6  # of the numbers in partition.json
SMALLEST_DISTANCE = 1e-12


def partition_by_affinity(features: list[str], affinity: Array, settings: PartitionSettings) -> Partition:
    """Towers from the affinity of features, [F, F] in [0, 1].

    Raises:
        InputError: more towers than features.
    """
    _check_count(features, settings)
    distances = 1.0 - affinity if settings.strategy == "coherent" else affinity
    coordinates, stress = embed_distances(distances, settings)
    labels = balanced_clusters(coordinates, settings.towers, settings.balance_ratio, settings.seed)
    members = [[features[i] for i in np.flatnonzero(labels == tower)] for tower in range(settings.towers)]
    return _partition(features, members, settings, stress, affinity, coordinates)


def partition_without_probe(features: list[str], settings: PartitionSettings) -> Partition:
    """Towers by stride, at random or by hand.

    Raises:
        InputError: more towers than features, or manual towers that do not hold each feature once.
    """
    if settings.strategy == "manual":
        partition = Partition("manual", settings.manual_towers, features, settings.balance_ratio)
        partition.check_features(features)
        return partition
    _check_count(features, settings)
    order = list(features)
    if settings.strategy == "random":
        order = [features[i] for i in np.random.default_rng(settings.seed).permutation(len(features))]
    return _partition(features, [order[t :: settings.towers] for t in range(settings.towers)], settings)


def embed_distances(distances: Array, settings: PartitionSettings) -> tuple[Array, float]:
    """Points [F, dimensions] whose distances follow ``distances`` [F, F], and the stress left.

    Minimises the sum over pairs of (|x_i - x_j| - d_ij)^2 with Adam; the best of ``restarts`` starts.
    """
    target = torch.from_numpy(np.asarray(distances, dtype=np.float64))
    tries = [_minimise_stress(target, settings, settings.seed + restart) for restart in range(settings.restarts)]
    return min(tries, key=lambda attempt: attempt[1])


def _minimise_stress(target: torch.Tensor, settings: PartitionSettings, seed: int) -> tuple[Array, float]:
    count = target.shape[0]
    first, second = torch.triu_indices(count, count, offset=1)
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, settings.dimensions, dtype=torch.float64, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=settings.learning_rate)
    stress = torch.zeros(())
    for _ in range(settings.steps):
        optimizer.zero_grad()
        squares = (points[first] - points[second]).square().sum(dim=1)
        stress = (squares.clamp_min(SMALLEST_DISTANCE).sqrt() - target[first, second]).square().sum()
        stress.backward()
        optimizer.step()
    return points.detach().numpy(), float(stress.detach())


def balanced_clusters(points: Array, clusters: int, ratio: float, seed: int) -> NDArray[np.int64]:
    """Cluster of each point, [F]: k-means whose largest cluster has at most ``ratio`` times the smallest's points.

    Where no such sizes exist (a ratio of 1 that does not divide), sizes differ by one at most.
    """
    fits: list[Any] = []
    for smallest, largest in _size_bounds(len(points), clusters, ratio):
        model = KMeansConstrained(clusters, size_min=smallest, size_max=largest, random_state=seed)
        fits.append(model.fit(points))
    best = min(fits, key=lambda fit: fit.inertia_)
    return np.asarray(best.labels_, dtype=np.int64)


def _size_bounds(points: int, clusters: int, ratio: float) -> list[tuple[int, int]]:
    even = points // clusters
    bounds = [(smallest, min(int(ratio * smallest), points)) for smallest in range(1, even + 1)]
    return [b for b in bounds if b[1] * clusters >= points] or [(even, -(-points // clusters))]


def _check_count(features: list[str], settings: PartitionSettings) -> None:
    if settings.towers > len(features):
        raise InputError(
            f"params/partition.yaml: towers is {settings.towers} and the data has {len(features)} "
            f"categorical features; give at most {len(features)}"
        )


def _partition(
    features: list[str],
    members: list[list[str]],
    settings: PartitionSettings,
    stress: float = 0.0,
    affinity: Array | None = None,
    coordinates: Array | None = None,
) -> Partition:
    """A partition in a canonical order: features as in the data, towers by their first feature."""
    towers = sorted((sorted(tower, key=features.index) for tower in members), key=lambda t: features.index(t[0]))
    return Partition(
        strategy=settings.strategy,
        towers=towers,
        features=features,
        balance_ratio=settings.balance_ratio,
        stress=round(stress, DECIMALS),
        affinity=[] if affinity is None else np.round(affinity, DECIMALS).tolist(),
        coordinates=[] if coordinates is None else np.round(coordinates, DECIMALS).tolist(),
    )
