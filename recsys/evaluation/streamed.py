"""Many models' metrics and bootstrap draws in one pass over predictions, in bounded memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.metrics import (
    CALIBRATION_BINS,
    METRICS,
    RECALL_BUDGET,
    FloatArray,
    entropies,
    probabilities,
)
from recsys.evaluation.resampling import draws_of, over_drawn_seeds, seed_shares
from recsys.evaluation.threads import threads

BUNDLES = 512  # of blocks that are drawn together
LOGIT_BINS = 8192
LARGEST_LOGIT = 16.0  # larger logits count as equal when rows are ordered
HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth's multiplicative hash
BUNDLE_BITS = np.uint64(64 - 9)
ROWS_IN_CACHE = 1 << 16  # added at a time, so that intermediate results stay in the CPU cache


@dataclass(frozen=True)
class Rows:
    """Some rows: labels and blocks [n], each model's logits [n] with one array per seed, and how
    often each row counts [n] (None: once)."""

    labels: FloatArray
    blocks: NDArray[np.integer]
    logits: Mapping[str, Sequence[FloatArray]]
    weights: FloatArray | None = None


@dataclass
class _Sums:
    """For one set of predictions: sums per bundle, and counts of labels per bundle and bin."""

    loss: NDArray[np.float64]
    predicted: NDArray[np.float64]
    counts: NDArray[np.number]  # [BUNDLES, 2 labels, LOGIT_BINS]
    is_known: bool = True  # no logit was NaN


def stream_metrics(
    parts: Iterable[Rows],
    samples: int,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[int, dict[str, list[dict[str, float]]], dict[str, NDArray[np.float64]]]:
    """The number of rows, each model's metrics (one dict per seed), and their resampled means over
    seeds [samples, len(METRICS)].

    NE, LogLoss and calibration are exact. Ranking metrics treat logits that are less than 2 *
    LARGEST_LOGIT / LOGIT_BINS apart as ties, and ECE uses the middle of the bin as the logit. gAUC
    is NaN: it would need a group's rows together. Blocks are drawn in BUNDLES, by their hash, which
    is as good as one by one if there are many more blocks than bundles.

    Args:
        parts: all rows, in parts; one part is in memory at a time.
        samples, seed: settings of the bootstrap; training seeds are nested as in
            :func:`recsys.evaluation.resampling.resample`.
        advance: called with the number of rows added for a set of predictions.
    """
    count, rows_and_positives = 0, np.zeros((2, BUNDLES))
    sums: dict[tuple[str, int], _Sums] = {}
    with threads() as pool:
        for part in parts:
            bundle = (part.blocks.astype(np.uint64) * HASH >> BUNDLE_BITS).astype(np.int64)
            count += len(part.labels)
            hits = part.labels if part.weights is None else part.labels * part.weights
            rows_and_positives[0] += np.bincount(bundle, part.weights, minlength=BUNDLES)
            rows_and_positives[1] += np.bincount(bundle, hits, minlength=BUNDLES)
            keys = [(name, place) for name, own in part.logits.items() for place in range(len(own))]
            for key in keys:
                if key not in sums:
                    kind = np.int32 if part.weights is None else np.float64
                    counts = np.zeros((BUNDLES, 2, LOGIT_BINS), dtype=kind)
                    sums[key] = _Sums(np.zeros(BUNDLES), np.zeros(BUNDLES), counts)

            def add(key: tuple[str, int], part: Rows = part, bundle=bundle) -> None:
                for start in range(0, len(part.labels), ROWS_IN_CACHE):
                    some = slice(start, start + ROWS_IN_CACHE)
                    weights = None if part.weights is None else part.weights[some]
                    logits = part.logits[key[0]][key[1]][some]
                    _add(sums[key], logits, part.labels[some], bundle[some], weights)

            for _ in pool.map(add, keys):
                advance(len(part.labels))
        filled = rows_and_positives[0] > 0
        rows, positives = rows_and_positives[:, filled]
        ones = np.ones((1, int(filled.sum())), dtype=np.int64)
        measured: dict[str, list[dict[str, float]]] = {}
        drawn: dict[str, list[NDArray[np.float64]]] = {}
        for key, own in sums.items():
            values = _at(own, filled, rows, positives, ones)[0]
            measured.setdefault(key[0], []).append(
                {"rows": count, **dict(zip(METRICS, values.tolist(), strict=True))}
            )

        def draw(own: _Sums) -> NDArray[np.float64]:
            if ones.size < 2:
                return np.full((samples, len(METRICS)), np.nan)
            return np.concatenate(
                [
                    _at(own, filled, rows, positives, some)
                    for _, some in draws_of(seed, ones.size, samples)
                ]
            )

        for key, values in zip(sums, pool.map(draw, sums.values()), strict=True):
            drawn.setdefault(key[0], []).append(values)
    shares = seed_shares(seed, max(map(len, drawn.values()), default=1), samples)
    means = {name: over_drawn_seeds(own, shares) for name, own in drawn.items()}
    return count, measured, means


def _add(
    sums: _Sums,
    logits: FloatArray,
    labels: FloatArray,
    bundle: NDArray[np.int64],
    weights: FloatArray | None,
) -> None:
    # Takes a third of the time of row_losses and probabilities, which need an exponential each
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN gives NaN
        tail = np.exp(-np.abs(wide))
        loss = np.maximum(wide, 0.0) + np.log(1.0 + tail) - wide * labels
        predicted = np.where(wide >= 0.0, 1.0, tail) / (1.0 + tail)
    if weights is not None:
        loss, predicted = weights * loss, weights * predicted
    sums.loss += np.bincount(bundle, loss, minlength=BUNDLES)
    sums.predicted += np.bincount(bundle, predicted, minlength=BUNDLES)
    if np.isnan(logits).any():
        sums.is_known = False
        return
    scaled = (logits + np.float32(LARGEST_LOGIT)) * np.float32(LOGIT_BINS / (2 * LARGEST_LOGIT))
    place = np.clip(scaled, 0, LOGIT_BINS - 1).astype(np.int64)
    place += (bundle * 2 + (labels > 0)) * LOGIT_BINS
    # In place: bincount would write all bins for a few rows. With the counts' own type: otherwise
    # NumPy takes thirty times as long
    each = sums.counts.dtype.type(1) if weights is None else weights.astype(np.float64)
    np.add.at(sums.counts.reshape(-1), place, each)


def _at(
    sums: _Sums,
    filled: NDArray[np.bool_],
    rows: NDArray[np.float64],
    positives: NDArray[np.float64],
    draws: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Values [draws, len(METRICS)] with ``draws`` [draws, bundles] copies of each bundle."""
    weights = draws.astype(np.float64)
    total, hits = weights @ rows, weights @ positives
    loss, predicted = weights @ sums.loss[filled], weights @ sums.predicted[filled]
    values = dict.fromkeys(METRICS, np.full(len(draws), np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        values["logloss"] = loss / total
        values["ne"] = loss / total / entropies(hits / total)
        values["calibration"] = predicted / hits
        if sums.is_known:
            # [draws, LOGIT_BINS], the highest logits first
            negative, positive = (
                weights @ sums.counts[filled, label, ::-1].astype(np.float64) for label in (0, 1)
            )
            values |= _ranked(negative, positive)
    return np.stack([values[name] for name in METRICS], axis=1)


def _ranked(
    negative: NDArray[np.float64], positive: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """AUC, PR-AUC, recall and ECE from counts [draws, LOGIT_BINS], the highest logits first."""
    hits, shown = np.cumsum(positive, axis=1), np.cumsum(positive + negative, axis=1)
    all_hits, rows = hits[:, -1], shown[:, -1]
    misses = shown - hits
    below = misses[:, -1:] - misses + negative / 2
    precision = np.where(shown > 0, hits / shown, 0.0)
    budget = RECALL_BUDGET * rows
    recall = [
        np.interp(one, np.append(0.0, x), np.append(0.0, y))
        for one, x, y in zip(budget, shown, hits, strict=True)
    ]
    middle = (np.arange(LOGIT_BINS)[::-1] + 0.5) * (2 * LARGEST_LOGIT / LOGIT_BINS) - LARGEST_LOGIT
    excess = (positive + negative) * probabilities(middle) - positive
    # Bins with equal numbers of rows, counted as drawn
    place = np.minimum((shown - 1) * CALIBRATION_BINS // rows[:, None], CALIBRATION_BINS - 1)
    offset = np.arange(len(rows))[:, None] * CALIBRATION_BINS
    size = len(rows) * CALIBRATION_BINS
    binned = np.bincount(
        (np.maximum(place, 0) + offset).astype(np.int64).ravel(), excess.ravel(), minlength=size
    )
    return {
        "auc": (positive * below).sum(axis=1) / (all_hits * (rows - all_hits)),
        "pr_auc": (positive * precision).sum(axis=1) / all_hits,
        "recall": np.array(recall) / all_hits,
        "ece": np.abs(binned.reshape(len(rows), CALIBRATION_BINS)).sum(axis=1) / rows,
    }
