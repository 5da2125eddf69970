"""Metrics of click predictions from logits. All arrays are [N]; ``labels`` hold 0 and 1.

Every metric is NaN where it is not defined: no rows, only one class of label, or a logit that
is NaN.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
METRICS = ("ne", "auc", "gauc", "logloss", "calibration")


@dataclass(frozen=True)
class Metrics:
    """The five metrics of one set of predictions; ``rows`` is N."""

    rows: int
    ne: float
    auc: float
    gauc: float
    logloss: float
    calibration: float

    def as_dict(self) -> dict[str, float]:
        """By name, ``rows`` included."""
        return asdict(self)


def compute_metrics(logits: FloatArray, labels: FloatArray, groups: NDArray[np.integer]) -> Metrics:
    """All metrics of one set of predictions."""
    return Metrics(
        rows=len(labels),
        ne=normalized_entropy(logits, labels),
        auc=auc(logits, labels),
        gauc=grouped_auc(logits, labels, groups),
        logloss=log_loss(logits, labels),
        calibration=calibration(logits, labels),
    )


def probabilities(logits: FloatArray) -> NDArray[np.float64]:
    """Sigmoid in float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def row_losses(logits: FloatArray, labels: FloatArray) -> NDArray[np.float64]:
    """Binary cross entropy of each row, in nats."""
    wide = np.asarray(logits, dtype=np.float64)
    return np.logaddexp(0.0, wide) - wide * labels


def log_loss(logits: FloatArray, labels: FloatArray) -> float:
    """Mean binary cross entropy in nats."""
    return float(row_losses(logits, labels).mean()) if len(labels) else float("nan")


def entropy(rate: float) -> float:
    """Entropy in nats of a coin that falls on 1 with probability ``rate``; 0 for 0 and 1."""
    return float(-sum(p * np.log(p) for p in (rate, 1.0 - rate) if p > 0))


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


def auc_by_group(
    logits: FloatArray, labels: FloatArray, groups: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """AUC [G] (NaN for one class, or where a logit is NaN) and rows [G] of each group, in the order
    of the sorted group ids."""
    _, group_index = np.unique(groups, return_inverse=True)
    count = int(group_index.max()) + 1 if len(group_index) else 0
    order = np.lexsort((logits, group_index))
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
    """Scores sorted once, so that the AUC under many weights costs one pass over the rows each.

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
        order = np.argsort(scores[~is_positive], kind="stable")
        negative = scores[~is_positive][order]
        self._positive, self._negative = places[is_positive], places[~is_positive][order]
        # How many of the sorted negatives lie below each positive, and how many not above it
        self._below = np.searchsorted(negative, scores[is_positive], side="left")
        self._up_to = np.searchsorted(negative, scores[is_positive], side="right")

    def auc(self, weights: NDArray[np.floating]) -> float:
        """AUC with ``weights`` of rows or groups, ties counting one half; NaN when one class has no
        weight or a logit is NaN."""
        if not self._defined:
            return float("nan")
        positive = weights[self._positive]
        negatives = np.concatenate([[0.0], np.cumsum(weights[self._negative])])
        pairs = positive.sum() * negatives[-1]
        won = np.dot(positive, negatives[self._below] + negatives[self._up_to]) / 2
        return float(won / pairs) if pairs > 0 else float("nan")
