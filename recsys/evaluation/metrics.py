"""Metrics of click predictions from logits. All arrays are [N]; ``labels`` are 0 or 1.

With ``weights`` (above 0) each row counts that many times; None: once. Every metric is NaN where it
is undefined: without rows, with only one class of label, or if a logit is NaN.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
METRICS = ("ne", "auc", "gauc", "logloss", "calibration", "pr_auc", "ece", "recall")
TABLE_METRICS = METRICS[:5]  # shown in the terminal's table
LABELS = {
    "ne": "NE",
    "auc": "AUC",
    "gauc": "gAUC",
    "logloss": "LogLoss",
    "calibration": "calibration",
    "pr_auc": "PR-AUC",
    "ece": "ECE",
    "recall": "recall at 10 %",
}
CALIBRATION_BINS = 20  # with equal numbers of rows, for ECE
RECALL_BUDGET = 0.1  # share of rows that may be shown, for recall at budget


@dataclass(frozen=True)
class Metrics:
    """All metrics of one set of predictions; ``rows`` is N."""

    rows: int
    ne: float
    auc: float
    gauc: float
    logloss: float
    calibration: float
    pr_auc: float
    ece: float
    recall: float

    def as_dict(self) -> dict[str, float]:
        """The metrics by name, including ``rows``."""
        return asdict(self)


def compute_metrics(
    logits: FloatArray,
    labels: FloatArray,
    groups: NDArray[np.integer],
    weights: FloatArray | None = None,
) -> Metrics:
    """All metrics of one set of predictions."""
    rows = len(labels)
    total = rows if weights is None else float(np.sum(weights, dtype=np.float64))
    positives = _total(labels, weights)
    background = entropy(positives / total) if rows else 0.0
    loss, predicted = log_loss(logits, labels, weights), probabilities(logits)
    each = np.ones(rows, dtype=np.int64) if weights is None else weights.astype(np.float64)
    auc, pr_auc, recall = SortedScores(logits, labels).ranking(each)
    return Metrics(
        rows=rows,
        ne=loss / background if background > 0 else float("nan"),
        auc=auc,
        gauc=grouped_auc(logits, labels, groups, weights),
        logloss=loss,
        calibration=_total(predicted, weights) / positives if positives else float("nan"),
        pr_auc=pr_auc,
        ece=_calibration_error(calibration_bins(logits), predicted - labels, weights),
        recall=recall,
    )


def _total(values: FloatArray, weights: FloatArray | None) -> float:
    """The sum of ``values``, each times its weight."""
    if weights is not None:
        return float(np.dot(values.astype(np.float64), weights))
    return float(np.sum(values, dtype=np.float64))


def probabilities(logits: FloatArray) -> NDArray[np.float64]:
    """Sigmoid in float64, without overflow."""
    with np.errstate(invalid="ignore"):  # NaN gives NaN
        return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def row_losses(logits: FloatArray, labels: FloatArray) -> NDArray[np.float64]:
    """Binary cross entropy of each row, in nats."""
    wide = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # NaN gives NaN
        return np.logaddexp(0.0, wide) - wide * labels


def log_loss(logits: FloatArray, labels: FloatArray, weights: FloatArray | None = None) -> float:
    """Mean binary cross entropy in nats."""
    if not len(labels):
        return float("nan")
    return float(np.average(row_losses(logits, labels), weights=weights))


def entropy(rate: float) -> float:
    """Entropy in nats of a label that is 1 with probability ``rate``; 0 for rates 0 and 1."""
    return float(-sum(p * np.log(p) for p in (rate, 1.0 - rate) if p > 0))


def entropies(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """:func:`entropy` of each rate; NaN for 0 and 1, where there is only one class."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return -(rates * np.log(rates) + (1 - rates) * np.log(1 - rates))


def normalized_entropy(
    logits: FloatArray, labels: FloatArray, weights: FloatArray | None = None
) -> float:
    """Log loss over the entropy of the mean label (He et al. 2014); below 1 beats a constant."""
    if not len(labels):
        return float("nan")
    background = entropy(float(np.average(labels.astype(np.float64), weights=weights)))
    return log_loss(logits, labels, weights) / background if background > 0 else float("nan")


def calibration(logits: FloatArray, labels: FloatArray, weights: FloatArray | None = None) -> float:
    """Sum of predicted probabilities over sum of labels; 1 is right on average."""
    positives = _total(labels, weights)
    return _total(probabilities(logits), weights) / positives if positives else float("nan")


def expected_calibration_error(logits: FloatArray, labels: FloatArray) -> float:
    """Mean over rows of the distance between predicted and observed rate in the row's bin of logits
    (Naeini et al. 2015, but with equal numbers of rows per bin, since most click probabilities are
    small)."""
    return _calibration_error(calibration_bins(logits), probabilities(logits) - labels, None)


def calibration_bins(logits: FloatArray) -> NDArray[np.intp]:
    """The bin [N] of each row: about N / CALIBRATION_BINS rows per bin, with equal logits in the
    same bin."""
    if not len(logits):
        return np.zeros(0, dtype=np.intp)
    places = len(logits) * np.arange(1, CALIBRATION_BINS) // CALIBRATION_BINS
    edges = np.partition(logits, places)[places]
    return np.searchsorted(edges, logits, side="right")


def _calibration_error(
    bins: NDArray[np.intp], excess: NDArray[np.floating], weights: FloatArray | None
) -> float:
    """ECE of rows whose predictions exceed the labels by ``excess`` [N]."""
    if not len(excess):
        return float("nan")
    rows = len(excess) if weights is None else weights.sum(dtype=np.float64)
    counted = excess if weights is None else excess * weights
    return float(np.abs(np.bincount(bins, weights=counted)).sum() / rows)


def pr_auc(logits: FloatArray, labels: FloatArray) -> float:
    """Average precision: the mean over positives of the share of positives among rows that rank at
    least as high."""
    return SortedScores(logits, labels).ranking(np.ones(len(labels), dtype=np.int64))[1]


def recall_at_budget(logits: FloatArray, labels: FloatArray) -> float:
    """Share of all positives that are among the RECALL_BUDGET share of highest-ranked rows; rows
    tied at the cut-off count in equal parts."""
    return SortedScores(logits, labels).ranking(np.ones(len(labels), dtype=np.int64))[2]


def auc(logits: FloatArray, labels: FloatArray) -> float:
    """Probability that a positive ranks above a negative; ties count one half."""
    return SortedScores(logits, labels).auc(np.ones(len(labels)))


def grouped_auc(
    logits: FloatArray,
    labels: FloatArray,
    groups: NDArray[np.integer],
    weights: FloatArray | None = None,
) -> float:
    """Mean AUC within groups, weighted by the groups' rows; groups with only one class are left
    out."""
    if np.isnan(logits).any():
        return float("nan")
    group_auc, group_rows = auc_by_group(logits, labels, groups, weights)
    defined = ~np.isnan(group_auc)
    if not defined.any():
        return float("nan")
    return float(np.average(group_auc[defined], weights=group_rows[defined]))


def places_of(groups: NDArray[np.integer]) -> tuple[NDArray[np.integer], int]:
    """Each row's index [N] among the sorted distinct ``groups``, and their number."""
    lowest = int(groups.min()) if len(groups) else 0
    if not len(groups) or int(groups.max()) - lowest > 4 * len(groups):
        distinct, place = np.unique(groups, return_inverse=True)
        return place, len(distinct)
    offset = groups - lowest  # counting is several times as fast as sorting
    places = np.cumsum(np.bincount(offset) > 0) - 1
    return places[offset], int(places[-1]) + 1


def auc_by_group(
    logits: FloatArray,
    labels: FloatArray,
    groups: NDArray[np.integer],
    weights: FloatArray | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC [G] (NaN with only one class, or if a logit is NaN) and rows [G] per group, in the order
    of the sorted group ids."""
    group_index, count = places_of(groups)
    order = order_by(group_index, logits)
    group, logit = group_index[order], np.asarray(logits)[order]
    weight = np.ones(len(order), np.int64) if weights is None else weights[order].astype(np.float64)
    is_positive = np.asarray(labels)[order] > 0
    rows, pairs, won = pairs_by_group(group, *runs_of(group, logit), weight, is_positive, count)
    unknown = np.bincount(group, weights=np.isnan(logit), minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((pairs > 0) & (unknown == 0), won / pairs, np.nan), rows


def pairs_by_group(
    group: NDArray[np.integer],
    first: NDArray[np.integer],
    last: NDArray[np.integer],
    weight: NDArray[np.number],
    is_positive: NDArray[np.bool_],
    count: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For each of ``count`` groups [G]: its rows, its pairs of a positive and a negative, and the
    number of pairs that the positive wins; ties count one half.

    Args:
        group: [N], for rows sorted by group and logit.
        first, last: [N], from :func:`runs_of`.
        weight: [N], how often each row counts.
        is_positive: [N], whether the label is 1.
    """
    positive = weight * is_positive
    below = np.concatenate([[0], np.cumsum(weight - positive)])
    half_up_to = (below.take(first) + below.take(last)) / 2
    sums = [
        np.bincount(group, weights=one, minlength=count).astype(np.float64)
        for one in (weight, positive, positive * half_up_to)
    ]
    rows, positives, won = sums
    negatives = rows - positives
    won -= positives * (np.cumsum(negatives) - negatives)  # subtract those of earlier groups
    return rows, positives * negatives, won


def order_by(group_index: NDArray[np.integer], logits: FloatArray) -> NDArray[np.intp]:
    """The order [N] of rows by group, then by logit; ties in any order."""
    by_logit = np.argsort(logits)
    groups = group_index[by_logit]
    if len(groups) and groups.max() < 1 << 16:
        groups = groups.astype(np.uint16)  # NumPy sorts these by counting
    return by_logit[np.argsort(groups, kind="stable")]


def runs_of(
    group: NDArray[np.integer], logit: FloatArray
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """For rows [N] sorted by group and logit: the first row with the same group and logit, and the
    one after the last."""
    # Compared, not subtracted: infinity minus infinity is not 0
    new = np.ones(len(logit), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (logit[1:] != logit[:-1])
    first = np.flatnonzero(new)
    length = np.diff(np.append(first, len(logit)))
    return np.repeat(first, length), np.repeat(first + length, length)


class SortedScores:
    """Scores sorted once, so that a ranking under new weights costs one pass over the rows.

    Args:
        logits: [N].
        labels: [N], 0 or 1.
        groups: [N], index of each row's weight in the weights given later; None: each row has its
            own.
        row_weights: [N], factors for the weights given later; None: 1.
    """

    def __init__(
        self,
        logits: FloatArray,
        labels: FloatArray,
        groups: NDArray[np.integer] | None = None,
        row_weights: FloatArray | None = None,
    ) -> None:
        is_positive = np.asarray(labels) > 0
        places = np.arange(len(is_positive)) if groups is None else groups
        scores = np.asarray(logits)
        self._defined = len(scores) > 0 and not np.isnan(scores).any()
        own = None if row_weights is None else row_weights.astype(np.float64)
        positive, self._positive = _sorted(scores, places, own, is_positive)
        negative, self._negative = _sorted(scores, places, own, ~is_positive)
        # How many of the sorted negatives are below each positive, and how many are not above it
        self._below = np.searchsorted(negative, positive, side="left")
        self._up_to = np.searchsorted(negative, positive, side="right")
        self._ties = bool((self._below != self._up_to).any())
        # Positives with equal scores form a run: first and last + 1
        new = np.flatnonzero(positive[1:] != positive[:-1]) + 1
        self._first = np.concatenate([[0], new]) if len(positive) else new
        self._last = np.append(self._first[1:], len(positive)) if len(positive) else new

    def auc(self, weights: NDArray[np.number]) -> float:
        """AUC with ``weights`` of rows or groups, counting ties as one half; NaN if one class has
        no weight or a logit is NaN."""
        return self.ranking(weights)[0]

    def ranking(self, weights: NDArray[np.number]) -> tuple[float, float, float]:
        """AUC, PR-AUC and recall at RECALL_BUDGET with ``weights`` of rows or groups; NaN as in
        :meth:`auc`. Integers are summed eight times as fast as floats."""
        weight = self._positive(weights)
        positives = _sums(weight)
        negatives = _sums(self._negative(weights))
        all_positives, all_negatives = float(positives[-1]), float(negatives[-1])
        if not self._defined or all_positives <= 0 or all_negatives <= 0:
            return float("nan"), float("nan"), float("nan")
        below = negatives.take(self._below)
        up_to = negatives.take(self._up_to) if self._ties else below
        won = float(np.dot(weight, below + up_to)) / 2
        # Per run, lowest first: weight of rows at its score or above, and of rows above it
        hits = all_positives - positives.take(self._first)
        hits_above = all_positives - positives.take(self._last)
        shown = hits + (all_negatives - below.take(self._first))
        precision = hits / np.maximum(shown, np.finfo(np.float64).tiny)  # hits are 0 where shown is
        average = np.dot(hits - hits_above, precision)
        budget = RECALL_BUDGET * (all_positives + all_negatives)
        run = len(shown) - 1 - int(np.searchsorted(shown[::-1], budget))
        found = all_positives  # the budget reaches below the lowest positive
        if run >= 0:
            found = hits_above[run]
            shown_above = found + all_negatives - up_to[self._first[run]]
            if budget > shown_above and shown[run] > shown_above:
                part = (budget - shown_above) / (shown[run] - shown_above)
                found += part * (hits[run] - found)
        return (
            won / (all_positives * all_negatives),
            float(average) / all_positives,
            float(found) / all_positives,
        )


def _sorted(
    scores: FloatArray,
    places: NDArray[np.integer],
    row_weights: NDArray[np.float64] | None,
    chosen: NDArray[np.bool_],
) -> tuple[FloatArray, Callable[[NDArray[np.number]], NDArray[np.number]]]:
    """The ``chosen`` scores in ascending order, and a function that returns their rows' weights in
    this order."""
    found = scores[chosen]
    order = np.argsort(found)
    place = places[chosen][order]
    if row_weights is None:
        return found[order], lambda weights: weights.take(place)
    own = row_weights[chosen][order]
    return found[order], lambda weights: weights.take(place) * own


def _sums(weights: NDArray[np.number]) -> NDArray[np.number]:
    """The sums [N + 1] of the first 0, 1, ... N weights."""
    sums = np.zeros(len(weights) + 1, dtype=weights.dtype)
    np.cumsum(weights, out=sums[1:])
    return sums
