"""The tower partitioner: affinity -> distances -> map -> balanced clusters (DMT, arXiv 2403.00877,
section 3.3)."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from k_means_constrained import KMeansConstrained
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import eye_array, kron
from scipy.spatial.distance import cdist
from sklearn.cluster import kmeans_plusplus
from sklearn.manifold import spectral_embedding

from recsys.config import InputError
from recsys.models.partition_file import Partition
from recsys.towers.settings import PartitionSettings

Array = NDArray[np.float64]
DECIMALS = 6  # of numbers in partition.json
SMALLEST_DISTANCE = 1e-12
ROUNDS = 20  # of weighted k-means, which usually converges earlier
RELATIVE_GAP = 1e-3  # of an assignment's cost to the best possible
WEIGHT_TOLERANCE = 1e-9


def partition_by_affinity(
    features: list[str], affinity: Array, settings: PartitionSettings, weights: Array | None = None
) -> Partition:
    """Towers from the features' affinity, [F, F] in [0, 1]; ``weights`` [F] > 0 are for a balance
    other than count.

    Raises:
        InputError: there are more towers than features.
    """
    _check_count(features, settings)
    if settings.strategy == "spectral":
        coordinates, stress = _spectral_coordinates(affinity, settings), 0.0
    else:
        distances = affinity if settings.strategy == "diverse" else 1.0 - affinity
        coordinates, stress = embed_distances(
            _stretched(distances) if settings.stretch_distances else distances, settings
        )
    if settings.balance == "count" or weights is None:
        labels = balanced_clusters(
            coordinates, settings.towers, settings.balance_ratio, settings.seed
        )
    else:
        labels = weighted_clusters(coordinates, weights, settings)
    members = [
        [features[i] for i in np.flatnonzero(labels == tower)] for tower in range(settings.towers)
    ]
    return _partition(features, members, settings, stress, affinity, coordinates)


def partition_without_probe(
    features: list[str], settings: PartitionSettings, weights: Array | None = None
) -> Partition:
    """Towers by stride, at random, greedily by ``weights`` [F] (default 1 each) or by hand.

    Raises:
        InputError: there are more towers than features, or manual towers do not contain each
            feature once.
    """
    if settings.strategy == "manual":
        partition = Partition("manual", settings.manual_towers, features, settings.balance_ratio)
        try:
            return replace(partition, features=[piece.name for piece in partition.pieces(features)])
        except InputError as error:
            raise InputError(f"{settings.where('manual_towers')}: {error}") from error
    _check_count(features, settings)
    if settings.strategy == "greedy":
        labels = greedy_clusters(
            np.ones(len(features)) if weights is None else weights, settings.towers
        )
        members = [
            [features[i] for i in np.flatnonzero(labels == tower)]
            for tower in range(settings.towers)
        ]
        return _partition(features, members, settings)
    order = list(features)
    if settings.strategy == "random":
        order = [
            features[i] for i in np.random.default_rng(settings.seed).permutation(len(features))
        ]
    return _partition(
        features, [order[t :: settings.towers] for t in range(settings.towers)], settings
    )


def embed_distances(distances: Array, settings: PartitionSettings) -> tuple[Array, float]:
    """Points [F, dimensions] whose distances approximate ``distances`` [F, F], and the remaining
    stress.

    Minimises the sum over pairs of (|x_i - x_j| - d_ij)^2 with Adam; returns the best of
    ``restarts`` starts.
    """
    target = torch.from_numpy(np.asarray(distances, dtype=np.float64))
    count = target.shape[0]
    first, second = torch.triu_indices(count, count, offset=1)
    starts = [
        torch.randn(
            count,
            settings.dimensions,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(settings.seed + restart),
        )
        for restart in range(settings.restarts)
    ]
    # All starts in one step: with so few numbers, launching operations takes most of the time
    points = torch.stack(starts).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=settings.learning_rate)
    stress = torch.zeros(settings.restarts)
    for _ in range(settings.steps):
        optimizer.zero_grad()
        squares = (points[:, first] - points[:, second]).square().sum(dim=2)
        apart = squares.clamp_min(SMALLEST_DISTANCE).sqrt() - target[first, second]
        stress = apart.square().sum(dim=1)
        stress.sum().backward()
        optimizer.step()
    best = int(stress.argmin())
    return points[best].detach().numpy(), float(stress[best].detach())


def balanced_clusters(points: Array, clusters: int, ratio: float, seed: int) -> NDArray[np.int64]:
    """The cluster of each point, [F], by k-means whose largest cluster has at most ``ratio`` times
    the points of the smallest.

    If no such sizes exist (ratio 1 with an indivisible number), sizes differ by at most one.
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


def greedy_clusters(weights: Array, clusters: int) -> NDArray[np.int64]:
    """The cluster of each weight, [F]: the next heaviest goes to the lightest cluster; none is
    empty."""
    labels = np.zeros(len(weights), dtype=np.int64)
    load, count = np.zeros(clusters), np.zeros(clusters)
    for item in np.argsort(-weights, kind="stable"):
        lightest = int(np.lexsort((count, load))[0])
        labels[item] = lightest
        load[lightest] += weights[item]
        count[lightest] += 1
    return labels


def weight_bound(weights: Array, clusters: int, ratio: float) -> float:
    """The largest weight of a cluster: ``ratio`` times the mean, or what the greedy assignment
    needs if that is more."""
    greedy = np.bincount(
        greedy_clusters(weights, clusters), weights=weights, minlength=clusters
    ).max()
    return max(ratio * float(weights.sum()) / clusters, float(greedy))


def weighted_clusters(
    points: Array, weights: Array, settings: PartitionSettings
) -> NDArray[np.int64]:
    """The cluster of each point, [F], by k-means under :func:`weight_bound`; no cluster is empty.

    Each round assigns all points at once, in the cheapest way that the bound allows (an integer
    program, solved by scipy's HiGHS). Returns the best of ``restarts`` starts.
    """
    clusters, bound = (
        settings.towers,
        weight_bound(weights, settings.towers, settings.balance_ratio),
    )
    tries = []
    for restart in range(settings.restarts):
        centres, _ = kmeans_plusplus(points, clusters, random_state=settings.seed + restart)
        labels = np.full(len(points), -1)
        for _ in range(ROUNDS):
            before, labels = labels, _assign(cdist(points, centres, "sqeuclidean"), weights / bound)
            if np.array_equal(before, labels):
                break
            centres = np.stack(
                [points[labels == cluster].mean(axis=0) for cluster in range(clusters)]
            )
        tries.append((float(((points - centres[labels]) ** 2).sum()), labels))
    return min(tries, key=lambda one: one[0])[1]


def _assign(costs: NDArray[np.floating], weights: Array) -> NDArray[np.int64]:
    """The cheapest assignment of points to clusters, [F], for ``costs`` [F, clusters], with total
    weight at most 1 and at least one point per cluster."""
    points, clusters = costs.shape
    once = kron(eye_array(points), np.ones((1, clusters)))
    load = kron(weights[None, :], eye_array(clusters))
    count = kron(np.ones((1, points)), eye_array(clusters))
    found = milp(
        costs.ravel(),
        integrality=np.ones(costs.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(once, 1, 1),
            LinearConstraint(load, -np.inf, 1 + WEIGHT_TOLERANCE),
            LinearConstraint(count, 1, np.inf),
        ],
        options={"mip_rel_gap": RELATIVE_GAP},
    )
    return found.x.reshape(costs.shape).argmax(axis=1)


def _spectral_coordinates(affinity: Array, settings: PartitionSettings) -> Array:
    """[F, towers]: the first eigenvectors of the affinity's Laplacian (Ng, Jordan and Weiss
    2002)."""
    count = min(settings.towers, len(affinity) - 1)
    return np.asarray(
        spectral_embedding(
            affinity, n_components=count, random_state=settings.seed, drop_first=False
        )
    )


def _stretched(distances: Array) -> Array:
    """The distances of pairs, mapped onto [0, 1]; a feature's distance to itself is not used."""
    pairs = distances[~np.eye(len(distances), dtype=bool)]
    if not pairs.size or pairs.max() == pairs.min():
        return distances
    return (distances - pairs.min()) / (pairs.max() - pairs.min())


def _check_count(features: list[str], settings: PartitionSettings) -> None:
    if settings.towers > len(features):
        raise InputError(
            f"{settings.where('towers')}: is {settings.towers}, and the data has {len(features)} "
            f"categorical features or slices of them; give at most {len(features)}"
        )


def _partition(
    features: list[str],
    members: list[list[str]],
    settings: PartitionSettings,
    stress: float = 0.0,
    affinity: Array | None = None,
    coordinates: Array | None = None,
) -> Partition:
    """A partition in canonical order: features as in the data, towers by their first feature."""
    towers = sorted(
        (sorted(tower, key=features.index) for tower in members), key=lambda t: features.index(t[0])
    )
    return Partition(
        strategy=settings.strategy,
        towers=towers,
        features=features,
        balance_ratio=settings.balance_ratio,
        stress=round(stress, DECIMALS),
        affinity=[] if affinity is None else np.round(affinity, DECIMALS).tolist(),
        coordinates=[] if coordinates is None else np.round(coordinates, DECIMALS).tolist(),
    )
