"""Compare two arms: paired bootstrap over blocks and seeds, corrected p values."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from recsys.evaluation.metrics import METRICS, FloatArray, compute_metrics
from recsys.evaluation.resampling import resample


@dataclass(frozen=True)
class Comparison:
    """One metric: each arm's mean over seeds, the difference (second - first) and its interval.

    ``p`` is the two-sided bootstrap p value of the difference, and ``p_holm`` the same corrected
    for all comparisons made together; NaN where unknown. ``t_test_p`` and ``wilcoxon_p`` are
    two-sided p values over seeds, None with one seed or if all differences are zero.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    t_test_p: float | None
    wilcoxon_p: float | None
    p: float = math.nan
    p_holm: float = math.nan


def compare(
    first: Sequence[FloatArray],
    second: Sequence[FloatArray],
    labels: FloatArray,
    groups: NDArray[np.integer],
    samples: int,
    confidence: float,
    seed: int,
    blocks: NDArray[np.integer] | None = None,
    weights: FloatArray | None = None,
) -> list[Comparison]:
    """Compare two arms on the same rows.

    Args:
        first: logits [N] of the first arm, one array per seed.
        second: logits [N] of the second arm, paired by seed with ``first``.
        labels: [N], 0 or 1.
        groups: [N], the group of each row for gAUC (the user).
        samples: bootstrap resamples.
        confidence: two-sided coverage of the interval, 0.95 for 95 %.
        seed: seed of the resampling.
        blocks: [N], the unit that is resampled, since rows of a block are not independent; None:
            the group.
        weights: [N], how often each row counts; None: once.

    Returns:
        One comparison per metric, in the order of ``METRICS``; ``p_holm`` is corrected for these.

    Raises:
        ValueError: the arms have different numbers of seeds, or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"arms must have the same number of seeds, got {len(first)} and {len(second)}"
        )
    values = {
        name: [compute_metrics(logits, labels, groups, weights).as_dict() for logits in arm]
        for name, arm in (("first", first), ("second", second))
    }
    both = {"first": first, "second": second}
    drawn = resample(both, labels, groups, samples, seed, blocks, weights=weights)
    found = compare_values(
        values["first"], values["second"], drawn["second"] - drawn["first"], confidence
    )
    corrected = holm([one.p for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def compare_values(
    first: Sequence[dict[str, float]],
    second: Sequence[dict[str, float]],
    differences: NDArray[np.float64],
    confidence: float,
) -> list[Comparison]:
    """Compare two arms by their metrics, one dict per seed, and resampled ``differences`` [samples,
    len(METRICS)]; ``p_holm`` is left NaN."""
    comparisons = []
    for column, metric in enumerate(METRICS):
        a, b = (np.array([one[metric] for one in arm]) for arm in (first, second))
        low, high = interval(differences[:, column], (1.0 - confidence) / 2)
        difference = float(np.mean(b - a))
        comparisons.append(
            Comparison(
                metric,
                float(a.mean()),
                float(b.mean()),
                difference,
                low,
                high,
                *seed_tests(a, b),
                p=p_value(difference, differences[:, column]),
            )
        )
    return comparisons


def p_value(difference: float, resampled: NDArray[np.float64]) -> float:
    """Two-sided p value of no difference, assuming a normal error with the spread of the resampled
    differences.

    A share of draws would be at least 1 / samples, which is never small after correction.
    """
    finite = resampled[np.isfinite(resampled)]
    if len(finite) < 2 or not math.isfinite(difference):
        return math.nan
    error = float(finite.std(ddof=1))
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.norm.sf(abs(difference) / error))


def p_text(p: float) -> str:
    """A p value as text; below 0.0001 no bootstrap can tell how small it is."""
    if math.isnan(p):
        return "-"
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p values: with probability 1 - alpha, none is below alpha where there
    is no difference. NaN stays NaN and does not count as a comparison."""
    corrected = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected


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
    """Lower and upper quantile of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return float(low), float(high)
