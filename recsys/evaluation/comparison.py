"""Is one arm better than the other: paired bootstrap over groups, and tests over seeds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from recsys.evaluation.metrics import (
    METRICS,
    FloatArray,
    SortedScores,
    auc_by_group,
    compute_metrics,
    probabilities,
    row_losses,
)

SAMPLES_AT_ONCE = 64  # of the bootstrap, in memory


@dataclass(frozen=True)
class Comparison:
    """One metric: each arm's mean over seeds, the difference (second - first) and its interval.

    ``t_test_p`` and ``wilcoxon_p`` are two-sided p values over seeds, None with one seed or where
    all differences are equal to zero.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    t_test_p: float | None
    wilcoxon_p: float | None


def compare(
    first: Sequence[FloatArray],
    second: Sequence[FloatArray],
    labels: FloatArray,
    groups: NDArray[np.integer],
    samples: int,
    confidence: float,
    seed: int,
) -> list[Comparison]:
    """Compare two arms on the same rows.

    Args:
        first: logits [N] of the first arm, one array a seed.
        second: logits [N] of the second arm, paired by seed with ``first``.
        labels: [N], 0 or 1.
        groups: [N], the unit that is resampled (the user): rows of one user are not independent.
        samples: bootstrap resamples.
        confidence: two-sided coverage of the interval, 0.95 for 95 %.
        seed: of the resampling.

    Returns:
        One comparison a metric, in the order of ``METRICS``.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"arms must have the same number of seeds, got {len(first)} and {len(second)}"
        )
    values = [
        [compute_metrics(logits, labels, groups).as_dict() for logits in arm]
        for arm in (first, second)
    ]
    differences = bootstrap_differences(first, second, labels, groups, samples, seed)
    tail = (1.0 - confidence) / 2
    comparisons = []
    for column, metric in enumerate(METRICS):
        a, b = (np.array([seed_values[metric] for seed_values in arm]) for arm in values)
        low, high = interval(differences[:, column], tail)
        t_test_p, wilcoxon_p = seed_tests(a, b)
        difference = float(np.mean(b - a))
        comparisons.append(
            Comparison(
                metric,
                float(a.mean()),
                float(b.mean()),
                difference,
                low,
                high,
                t_test_p,
                wilcoxon_p,
            )
        )
    return comparisons


def bootstrap_differences(
    first: Sequence[FloatArray],
    second: Sequence[FloatArray],
    labels: FloatArray,
    groups: NDArray[np.integer],
    samples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Differences [samples, len(METRICS)] of seed-mean metrics, groups drawn with replacement.

    Both arms see the same draw, so what they share cancels.
    """
    _, group_index = np.unique(groups, return_inverse=True)
    count = int(group_index.max()) + 1 if len(group_index) else 0
    if not count:
        return np.full((samples, len(METRICS)), np.nan)
    arms = [
        [_ResampledMetrics(logits, labels, groups, group_index) for logits in arm]
        for arm in (first, second)
    ]
    generator = np.random.default_rng(seed)
    differences = np.empty((samples, len(METRICS)))
    for sample in range(samples):
        draws = _draw(generator, count)
        a, b = (np.mean([one.at(draws) for one in arm], axis=0) for arm in arms)
        differences[sample] = b - a
    return differences


def ne_differences(
    first: Sequence[FloatArray],
    others: Sequence[Sequence[FloatArray]],
    labels: FloatArray,
    groups: NDArray[np.integer],
    samples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Differences [samples, others] of seed-mean NE to ``first``, by the draws of
    :func:`bootstrap_differences`.

    Models may have different numbers of seeds: NE of a draw comes from sums per group alone.
    """
    _, group_index = np.unique(groups, return_inverse=True)
    count = int(group_index.max()) + 1 if len(group_index) else 0
    if not count:
        return np.full((samples, len(others)), np.nan)
    losses = [
        np.mean([row_losses(one, labels) for one in model], axis=0) for model in (first, *others)
    ]
    columns = (np.ones(len(labels)), labels, *losses)
    sums = np.stack([np.bincount(group_index, weights=one) for one in columns], axis=1)
    generator = np.random.default_rng(seed)
    drawn = np.empty((samples, sums.shape[1]))
    for start in range(0, samples, SAMPLES_AT_ONCE):
        some = range(start, min(start + SAMPLES_AT_ONCE, samples))
        draws = np.stack([_draw(generator, count) for _ in some])  # [S, G]
        drawn[start : start + len(some)] = draws @ sums
    rows, positives, loss = drawn[:, 0], drawn[:, 1], drawn[:, 2:]
    background = _background(positives / rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = loss / (rows * background)[:, None]
    return values[:, 1:] - values[:, :1]


def _draw(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """How often each of ``count`` groups is drawn, [G]."""
    drawn = generator.integers(count, size=count)
    return np.bincount(drawn, minlength=count).astype(np.float64)


def _background(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of a draw's mean label; NaN where it has one class."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))


class _ResampledMetrics:
    """Metrics of one set of predictions when group g counts ``draws[g]`` times.

    Log loss, NE and calibration come from sums per group, gAUC from the AUC per group; AUC weighs
    rows.
    """

    def __init__(
        self,
        logits: FloatArray,
        labels: FloatArray,
        groups: NDArray[np.integer],
        group_index: NDArray[np.integer],
    ) -> None:
        columns = (np.ones(len(labels)), labels, row_losses(logits, labels), probabilities(logits))
        self._sums = np.stack(
            [np.bincount(group_index, weights=column) for column in columns], axis=1
        )  # [G, 4]
        self._sorted = SortedScores(logits, labels, group_index)
        group_auc, group_rows = auc_by_group(logits, labels, groups)
        defined = ~np.isnan(group_auc)
        rows = np.where(defined, group_rows, 0)
        self._ranked = np.stack([rows, rows * np.where(defined, group_auc, 0.0)], axis=1)  # [G, 2]

    def at(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values [len(METRICS)] with ``draws`` [G] copies of each group."""
        rows, positives, loss, predicted = draws @ self._sums
        ranked_rows, ranked = draws @ self._ranked
        with np.errstate(invalid="ignore", divide="ignore"):
            values = (
                loss / rows / _background(positives / rows),
                self._sorted.auc(draws),
                ranked / ranked_rows,
                loss / rows,
                predicted / positives,
            )
        return np.array(values)


def seed_tests(first: FloatArray, second: FloatArray) -> tuple[float | None, float | None]:
    """Two-sided p values of the paired t-test and of Wilcoxon's signed-rank test over seeds [S]."""
    difference = np.asarray(second) - np.asarray(first)
    if len(difference) < 2 or not np.isfinite(difference).all() or not difference.any():
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        _, t_test = stats.ttest_1samp(difference, 0.0)
        _, wilcoxon = stats.wilcoxon(difference)
    return _finite_or_none(t_test), _finite_or_none(wilcoxon)


def _finite_or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def interval(values: NDArray[np.float64], tail: float) -> tuple[float, float]:
    """Lower and upper quantile of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return float(low), float(high)
