"""The models on parts of a student's evaluation rows: domains, windows, hours of day, coldness."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.coldness import COLDNESS_BINS, COLDNESS_EDGES
from recsys.evaluation.comparison import interval
from recsys.evaluation.metrics import (
    FloatArray,
    auc_by_group,
    entropies,
    places_of,
    probabilities,
    row_losses,
)
from recsys.evaluation.reading import Predictions
from recsys.evaluation.resampling import draws_of, seed_shares
from recsys.evaluation.threads import threads
from recsys.units import MS_PER_HOUR

Values = dict[str, NDArray[np.float64]]
MOST_BLOCKS = 4096  # more blocks are drawn in bundles, to bound memory


def slices_of(
    predictions: Predictions, domains: Sequence[str], windows: Sequence[str]
) -> dict[str, tuple[list[str], NDArray[np.integer]]]:
    """By kind of slice, the slices' names and each row's index [N] among them, where known."""
    hour = predictions.event_time // MS_PER_HOUR % 24  # UTC
    kinds = {
        "domain": (list(domains), predictions.domain),
        "window": (list(windows), predictions.window),
        "hour": ([f"{one:02}" for one in range(24)], hour),
    }
    if len(predictions.seen) and predictions.seen.min() >= 0:
        bins = np.digitize(predictions.seen, COLDNESS_EDGES)
        kinds["coldness"] = (list(COLDNESS_BINS), bins)
    return kinds


def measure_slices(
    predictions: Predictions,
    kinds: dict[str, tuple[list[str], NDArray[np.integer]]],
    baseline: str,
    blocks: NDArray[np.integer],
    samples: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """By kind, slice and model: NE, AUC, LogLoss and calibration (means over seeds), and the NE
    difference from ``baseline`` with its interval.

    Slices without rows are left out.

    Args:
        blocks: [N], the unit that is drawn for the intervals, with training seeds nested in it;
            more than MOST_BLOCKS are drawn in bundles.
        samples, confidence, seed: settings of the bootstrap.
    """
    block, count = places_of(blocks)
    block, count = block % MOST_BLOCKS, min(count, MOST_BLOCKS)
    draws = np.concatenate([some for _, some in draws_of(seed, max(count, 1), samples)])
    draws = draws.astype(np.float64)
    models = [(name, one) for name, seeds in predictions.logits.items() for one in seeds]
    losses = np.stack([row_losses(one, predictions.labels) for _, one in models])  # [models, N]
    weights = predictions.weights
    each = np.ones(losses.shape[1]) if weights is None else weights.astype(np.float64)
    shares = seed_shares(seed, max(map(len, predictions.logits.values())), samples)
    found: dict[str, dict[str, Any]] = {}
    with threads() as pool:
        for kind, (names, index) in kinds.items():

            def draw(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
                labels = predictions.labels[mask]
                return _drawn_ne(losses[:, mask], labels, each[mask], block[mask], draws)

            values = list(
                pool.map(
                    _by_slice,
                    [one for _, one in models],
                    repeat(predictions.labels),
                    repeat(weights),
                    repeat(index),
                    repeat(len(names)),
                )
            )
            places = np.unique(index)
            masks = [index == place for place in places]
            found[kind] = {}
            for place, mask, drawn in zip(places, masks, pool.map(draw, masks), strict=True):
                ne = {
                    name: _over_seeds(drawn[:, [own == name for own, _ in models]], shares)
                    for name in predictions.logits
                }
                of_models = {
                    name: _means(models, values, name, place) for name in predictions.logits
                }
                for name, own in of_models.items():
                    if name != baseline:
                        low, high = interval(ne[name] - ne[baseline], (1 - confidence) / 2)
                        own["difference"] = own["ne"] - of_models[baseline]["ne"]
                        own |= {"low": low, "high": high}
                found[kind][names[place]] = {"rows": int(mask.sum()), "models": of_models}
    return found


def _means(
    models: Sequence[tuple[str, FloatArray]], values: Sequence[Values], name: str, place: int
) -> dict[str, float]:
    """A model's metrics in a slice, as means over seeds."""
    own = [one for (model, _), one in zip(models, values, strict=True) if model == name]
    return {metric: float(np.mean([one[metric][place] for one in own])) for metric in own[0]}


def _by_slice(
    logits: FloatArray,
    labels: FloatArray,
    weights: FloatArray | None,
    index: NDArray[np.integer],
    count: int,
) -> Values:
    """Metrics [count] of a set of predictions in each slice."""
    each = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    losses, predicted = row_losses(logits, labels), probabilities(logits)
    columns = (each, each * labels, each * losses, each * predicted)
    rows, positives, loss, predicted = (
        np.bincount(index, weights=one, minlength=count) for one in columns
    )
    auc = np.full(count, np.nan)
    auc[rows > 0] = auc_by_group(logits, labels, index, weights)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "ne": loss / rows / entropies(positives / rows),
            "auc": auc,
            "logloss": loss / rows,
            "calibration": np.where(positives > 0, predicted / positives, np.nan),
        }


def _drawn_ne(
    losses: NDArray[np.float64],
    labels: FloatArray,
    weights: NDArray[np.float64],
    block: NDArray[np.integer],
    draws: NDArray[np.float64],
) -> NDArray[np.float64]:
    """NE [draws, models] from ``losses`` [models, N] when each block counts as often as it is
    drawn."""
    columns = (weights, weights * labels, *(weights * losses))
    sums = [np.bincount(block, weights=one, minlength=draws.shape[1]) for one in columns]
    drawn = draws @ np.stack(sums, axis=1)
    rows, positives = drawn[:, :1], drawn[:, 1:2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return drawn[:, 2:] / rows / entropies(positives / rows)


def _over_seeds(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean [draws] of ``values`` [draws, seeds] over the drawn seeds."""
    return values[:, 0] if values.shape[1] == 1 else (values * shares).sum(axis=1)
