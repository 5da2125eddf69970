"""Metrics of click predictions from logits. All arrays are [N]; ``labels`` hold 0 and 1.

Every metric is NaN where it is not defined: no rows, only one class of label, or a logit that
is NaN.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
METRICS = ("ne", "auc", "gauc", "logloss", "calibration", "pr_auc", "ece", "recall")
TABLE_METRICS = METRICS[:5]  # those of the terminal's table
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
CALIBRATION_BINS = 20  # of equally many rows each, for ECE
RECALL_BUDGET = 0.1  # share of the rows that may be shown, for recall at budget


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
        """By name, ``rows`` included."""
        return asdict(self)


def compute_metrics(logits: FloatArray, labels: FloatArray, groups: NDArray[np.integer]) -> Metrics:
    """All metrics of one set of predictions."""
    rows = len(labels)
    positives = float(np.sum(labels, dtype=np.float64))
    background = entropy(positives / rows) if rows else 0.0
    loss, predicted = log_loss(logits, labels), probabilities(logits)
    auc, pr_auc, recall = SortedScores(logits, labels).ranking(np.ones(rows, dtype=np.int64))
    return Metrics(
        rows=rows,
        ne=loss / background if background > 0 else float("nan"),
        auc=auc,
        gauc=grouped_auc(logits, labels, groups),
        logloss=loss,
        calibration=float(predicted.sum() / positives) if positives else float("nan"),
        pr_auc=pr_auc,
        ece=_calibration_error(calibration_bins(logits), predicted - labels),
        recall=recall,
    )


def probabilities(logits: FloatArray) -> NDArray[np.float64]:
    """Sigmoid in float64, without overflow."""
    with np.errstate(invalid="ignore"):  # NaN gives NaN
        return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def row_losses(logits: FloatArray, labels: FloatArray) -> NDArray[np.float64]:
    """Binary cross entropy of each row, in nats."""
    wide = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # NaN gives NaN
        return np.logaddexp(0.0, wide) - wide * labels


def log_loss(logits: FloatArray, labels: FloatArray) -> float:
    """Mean binary cross entropy in nats."""
    return float(row_losses(logits, labels).mean()) if len(labels) else float("nan")


def entropy(rate: float) -> float:
    """Entropy in nats of a coin that falls on 1 with probability ``rate``; 0 for 0 and 1."""
    return float(-sum(p * np.log(p) for p in (rate, 1.0 - rate) if p > 0))


def entropies(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """As :func:`entropy` of each rate; NaN for 0 and 1, of which there is one class."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return -(rates * np.log(rates) + (1 - rates) * np.log(1 - rates))


def normalized_entropy(logits: FloatArray, labels: FloatArray) -> float:
    """Log loss over the entropy of the mean label (He et al. 2014); below 1 beats a constant."""
    if not len(labels):
        return float("nan")
    background = entropy(float(np.mean(labels, dtype=np.float64)))
    return log_loss(logits, labels) / background if background > 0 else float("nan")


def calibration(logits: FloatArray, labels: FloatArray) -> float:
    """Sum of predicted probabilities over sum of labels; 1 is right on average."""
    positives = float(np.sum(labels, dtype=np.float64))
    return float(probabilities(logits).sum() / positives) if positives else float("nan")


def expected_calibration_error(logits: FloatArray, labels: FloatArray) -> float:
    """Mean over rows of the distance between predicted and observed rate in a row's bin of logits
    (Naeini et al. 2015, with bins of equally many rows: most clicks' probabilities are small)."""
    return _calibration_error(calibration_bins(logits), probabilities(logits) - labels)


def calibration_bins(logits: FloatArray) -> NDArray[np.intp]:
    """The bin [N] of each row: about N / CALIBRATION_BINS rows each, equal logits together."""
    if not len(logits):
        return np.zeros(0, dtype=np.intp)
    places = len(logits) * np.arange(1, CALIBRATION_BINS) // CALIBRATION_BINS
    edges = np.partition(logits, places)[places]
    return np.searchsorted(edges, logits, side="right")


def _calibration_error(bins: NDArray[np.intp], excess: NDArray[np.floating]) -> float:
    """ECE of rows whose prediction lies ``excess`` [N] above the label."""
    if not len(excess):
        return float("nan")
    return float(np.abs(np.bincount(bins, weights=excess)).sum() / len(excess))


def pr_auc(logits: FloatArray, labels: FloatArray) -> float:
    """Average precision: the mean, over positives, of the share of positives among the rows that
    rank at least as high."""
    return SortedScores(logits, labels).ranking(np.ones(len(labels), dtype=np.int64))[1]


def recall_at_budget(logits: FloatArray, labels: FloatArray) -> float:
    """Share of the positives among the RECALL_BUDGET of rows that rank highest; of rows that tie
    at its end, each counts the same part."""
    return SortedScores(logits, labels).ranking(np.ones(len(labels), dtype=np.int64))[2]


def auc(logits: FloatArray, labels: FloatArray) -> float:
    """Probability that a positive ranks above a negative; ties count one half."""
    return SortedScores(logits, labels).auc(np.ones(len(labels)))


def grouped_auc(logits: FloatArray, labels: FloatArray, groups: NDArray[np.integer]) -> float:
    """Mean AUC within groups, weighted by a group's rows; groups of one class are left out."""
    if np.isnan(logits).any():
        return float("nan")
    group_auc, group_rows = auc_by_group(logits, labels, groups)
    defined = ~np.isnan(group_auc)
    if not defined.any():
        return float("nan")
    return float(np.average(group_auc[defined], weights=group_rows[defined]))


def places_of(groups: NDArray[np.integer]) -> tuple[NDArray[np.integer], int]:
    """Each row's place [N] among the sorted distinct ``groups``, and how many there are."""
    lowest = int(groups.min()) if len(groups) else 0
    if not len(groups) or int(groups.max()) - lowest > 4 * len(groups):
        distinct, place = np.unique(groups, return_inverse=True)
        return place, len(distinct)
    offset = groups - lowest  # counting is several times as fast as sorting
    places = np.cumsum(np.bincount(offset) > 0) - 1
    return places[offset], int(places[-1]) + 1


def auc_by_group(
    logits: FloatArray, labels: FloatArray, groups: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """AUC [G] (NaN for one class, or where a logit is NaN) and rows [G] of each group, in the order
    of the sorted group ids."""
    group_index, count = places_of(groups)
    order = order_by(group_index, logits)
    sorted_group, sorted_logit = group_index[order], np.asarray(logits)[order]
    positive = np.asarray(labels, dtype=np.float64)[order]
    rows = np.bincount(group_index, minlength=count)
    # [N], from 1
    rank = _average_ranks(sorted_group, sorted_logit) - (np.cumsum(rows) - rows)[sorted_group]
    positives = np.bincount(sorted_group, weights=positive, minlength=count)
    rank_sum = np.bincount(sorted_group, weights=positive * rank, minlength=count)
    pairs = positives * (rows - positives)
    unknown = np.bincount(sorted_group, weights=np.isnan(sorted_logit), minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (rank_sum - positives * (positives + 1) / 2) / pairs
    return np.where((pairs > 0) & (unknown == 0), value, np.nan), rows


def order_by(group_index: NDArray[np.integer], logits: FloatArray) -> NDArray[np.intp]:
    """The order [N] of rows by group, and by logit within one; ties in any order."""
    by_logit = np.argsort(logits)
    groups = group_index[by_logit]
    if len(groups) and groups.max() < 1 << 16:
        groups = groups.astype(np.uint16)  # which NumPy sorts by counting
    return by_logit[np.argsort(groups, kind="stable")]


def _average_ranks(
    sorted_group: NDArray[np.integer], sorted_logit: FloatArray
) -> NDArray[np.float64]:
    """Rank from 1 [N] of rows sorted by (group, logit); equal rows share their mean rank."""
    rows = len(sorted_logit)
    if not rows:
        return np.zeros(0)
    # Compared, not subtracted: infinity less infinity is no 0
    new = np.r_[
        True,
        (sorted_group[1:] != sorted_group[:-1]) | (sorted_logit[1:] != sorted_logit[:-1]),
    ]
    start = np.flatnonzero(new)
    length = np.diff(np.r_[start, rows])
    return np.repeat(start + (length + 1) / 2, length)


class SortedScores:
    """Scores sorted once, so that rankings under many weights cost one pass over the rows each.

    Args:
        logits: [N].
        labels: [N], 0 or 1.
        groups: [N] places in the weights that are given later; None: each row has its own.
    """

    def __init__(
        self, logits: FloatArray, labels: FloatArray, groups: NDArray[np.integer] | None = None
    ) -> None:
        is_positive = np.asarray(labels) > 0
        places = np.arange(len(is_positive)) if groups is None else groups
        scores = np.asarray(logits)
        self._defined = len(scores) > 0 and not np.isnan(scores).any()
        positive, self._positive = _sorted(scores[is_positive], places[is_positive])
        negative, self._negative = _sorted(scores[~is_positive], places[~is_positive])
        # How many of the sorted negatives lie below each positive, and how many not above it
        self._below = np.searchsorted(negative, positive, side="left")
        self._up_to = np.searchsorted(negative, positive, side="right")
        self._ties = bool((self._below != self._up_to).any())
        # Positives of equal score are one run: first and last + 1
        new = np.flatnonzero(positive[1:] != positive[:-1]) + 1
        self._first = np.concatenate([[0], new]) if len(positive) else new
        self._last = np.append(self._first[1:], len(positive)) if len(positive) else new

    def auc(self, weights: NDArray[np.number]) -> float:
        """AUC with ``weights`` of rows or groups, ties counting one half; NaN when one class has no
        weight or a logit is NaN."""
        return self.ranking(weights)[0]

    def ranking(self, weights: NDArray[np.number]) -> tuple[float, float, float]:
        """AUC, PR-AUC and recall at RECALL_BUDGET with ``weights`` of rows or groups; NaN as
        :meth:`auc`. Whole numbers are summed eight times as fast as others."""
        weight = weights.take(self._positive)
        positives = _sums(weight)
        negatives = _sums(weights.take(self._negative))
        all_positives, all_negatives = float(positives[-1]), float(negatives[-1])
        if not self._defined or all_positives <= 0 or all_negatives <= 0:
            return float("nan"), float("nan"), float("nan")
        below = negatives.take(self._below)
        up_to = negatives.take(self._up_to) if self._ties else below
        won = float(np.dot(weight, below + up_to)) / 2
        # Of each run, lowest first: weight of what lies at its score or above, and above it
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
    scores: FloatArray, places: NDArray[np.integer]
) -> tuple[FloatArray, NDArray[np.integer]]:
    """Both in ascending order of the scores."""
    order = np.argsort(scores)
    return scores[order], places[order]


def _sums(weights: NDArray[np.number]) -> NDArray[np.number]:
    """The sums [N + 1] of the first 0, 1, ... N weights."""
    sums = np.zeros(len(weights) + 1, dtype=weights.dtype)
    np.cumsum(weights, out=sums[1:])
    return sums
