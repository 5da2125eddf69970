"""The paired bootstrap: the metrics of many models under the same draws of blocks and seeds."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.metrics import (
    CALIBRATION_BINS,
    METRICS,
    FloatArray,
    SortedScores,
    auc_by_group,
    calibration_bins,
    entropies,
    order_by,
    pairs_by_group,
    places_of,
    probabilities,
    row_losses,
    runs_of,
)
from recsys.evaluation.threads import threads
from recsys.units import MS_PER_HOUR

DRAWS_AT_ONCE = 64
WEIGHTS_AT_ONCE = 1 << 24  # draws times blocks in memory


def resample(
    models: Mapping[str, Sequence[FloatArray]],
    labels: FloatArray,
    groups: NDArray[np.integer],
    samples: int,
    seed: int,
    blocks: NDArray[np.integer] | None = None,
    ranked: Collection[str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
    weights: FloatArray | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Each model's metrics [samples, len(METRICS)] when blocks of rows, and training seeds nested
    in them, are drawn with replacement.

    All models see the same draws, so shared variation cancels in differences. A model with one seed
    has that seed in every draw. Values are NaN where a draw has only one class of label, and
    everywhere with fewer than two blocks, which say nothing about other blocks.

    Args:
        models: logits [N] by model, one array per seed; each model has one seed or the common
            number of seeds.
        labels: [N], 0 or 1.
        groups: [N], the group of each row for gAUC (the user).
        samples: number of draws.
        seed: seed of the draws.
        blocks: [N], the unit that is drawn, since rows of a block are not independent; None: the
            group.
        ranked: models whose AUC, gAUC, PR-AUC, recall and ECE are wanted; the others' are NaN,
            because ordering rows takes nearly all of the time. None: all models.
        advance: called with the number of rows done, for every array of logits; the work is done by
            several threads, the calls are made by one.
        weights: [N], how often each row counts; None: once.

    Raises:
        ValueError: models have different numbers of seeds above one.
    """
    seeds = max((len(model) for model in models.values()), default=1)
    for name, model in models.items():
        if len(model) not in (1, seeds):
            raise ValueError(f"models must have one or {seeds} seeds, got {len(model)} of {name}")
    block, count = places_of(groups if blocks is None else blocks)
    values = {
        (name, place): np.full((samples, len(METRICS)), np.nan)
        for name, model in models.items()
        for place in range(len(model))
    }
    if count > 1:
        cells = None if blocks is None else groups
        full = models if ranked is None else ranked
        with threads() as pool:

            def prepare(key: tuple[str, int]) -> _Weighted:
                name, place = key
                return _Weighted(
                    models[name][place], labels, groups, block, cells, name in full, weights
                )

            prepared = dict(zip(values, pool.map(prepare, values), strict=True))
            for start, draws in draws_of(seed, count, samples):

                def weigh(key: tuple[str, int], start: int = start, draws=draws) -> None:
                    values[key][start : start + len(draws)] = prepared[key].at(draws)

                for _ in pool.map(weigh, values):
                    advance(len(labels) * len(draws) // samples)
    shares = seed_shares(seed, seeds, samples)
    return {
        name: over_drawn_seeds([values[name, place] for place in range(len(model))], shares)
        for name, model in models.items()
    }


def draws_of(seed: int, count: int, samples: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """How often each of ``count`` blocks is drawn, [draws, count], some draws at a time, with the
    index of the first one among ``samples``."""
    generator = np.random.default_rng(seed)
    at_once = max(1, min(DRAWS_AT_ONCE, WEIGHTS_AT_ONCE // count))
    for start in range(0, samples, at_once):
        drawn = [
            np.bincount(generator.integers(count, size=count), minlength=count)
            for _ in range(min(at_once, samples - start))
        ]
        yield start, np.stack(drawn)


def seed_shares(seed: int, seeds: int, samples: int) -> NDArray[np.float64]:
    """The share [samples, seeds] of each training seed in each draw."""
    generator = np.random.default_rng([seed, 1])  # the blocks' draws stay the same as with one seed
    drawn = generator.integers(seeds, size=(samples, seeds))
    return (drawn[:, :, None] == np.arange(seeds)).mean(axis=1)


def blocks_of(
    kind: str,
    groups: NDArray[np.integer],
    event_time: NDArray[np.integer],
    window: NDArray[np.integer],
) -> NDArray[np.integer]:
    """The bootstrap's block of each row [N], according to ``evaluate.blocks``; times are in ms."""
    return {"group": groups, "hour": event_time // MS_PER_HOUR, "window": window}[kind]


def over_drawn_seeds(
    values: Sequence[NDArray[np.float64]], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The mean [draws, metrics] over the drawn seeds, from each seed's ``values`` [draws, metrics];
    a model with one seed has it in every draw."""
    weights = shares if len(values) > 1 else np.ones((len(shares), 1))
    return np.einsum("ds,sdm->dm", weights, np.stack(values))


class _Weighted:
    """A set of predictions whose blocks may count any number of times.

    Log loss, NE, calibration and ECE come from sums per block, and so does gAUC if groups are the
    blocks; other ranking metrics are computed from row weights.
    """

    def __init__(
        self,
        logits: FloatArray,
        labels: FloatArray,
        groups: NDArray[np.integer],
        block: NDArray[np.integer],
        cells: NDArray[np.integer] | None,
        ranked: bool,
        weights: FloatArray | None,
    ) -> None:
        count = int(block.max()) + 1
        predicted = probabilities(logits)
        each = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
        columns = (each, each * labels, each * row_losses(logits, labels), each * predicted)
        sums = [np.bincount(block, weights=one, minlength=count) for one in columns]
        self._unordered = len(sums)  # sums that need no order; those of bins and groups follow
        self._ranked, self._grouped = ranked, None
        if ranked:
            self._sorted = SortedScores(logits, labels, block, weights)
            place = block * CALIBRATION_BINS + calibration_bins(logits)
            size = count * CALIBRATION_BINS
            excess = np.bincount(place, weights=each * (predicted - labels), minlength=size)
            sums += list(excess.reshape(count, CALIBRATION_BINS).T)
            if cells is None:
                group_auc, rows = auc_by_group(logits, labels, groups, weights)
                defined = ~np.isnan(group_auc)
                rows = np.where(defined, rows, 0)
                sums += [rows, rows * np.where(defined, group_auc, 0.0)]
            else:
                self._grouped = _GroupedScores(logits, labels, cells, block, weights)
        self._sums = np.stack(sums, axis=1)

    def at(self, draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values [draws, len(METRICS)] with ``draws`` [draws, blocks] copies of each block."""
        sums = draws.astype(np.float64) @ self._sums
        rows, positives, loss, predicted = sums[:, : self._unordered].T
        values = dict.fromkeys(METRICS, np.full(len(draws), np.nan))
        with np.errstate(invalid="ignore", divide="ignore"):
            values |= {
                "ne": loss / rows / entropies(positives / rows),
                "logloss": loss / rows,
                "calibration": predicted / positives,
            }
            if self._ranked:
                bins = sums[:, self._unordered : self._unordered + CALIBRATION_BINS]
                values["ece"] = np.abs(bins).sum(axis=1) / rows
                ranking = np.array([self._sorted.ranking(one) for one in draws])
                values["auc"], values["pr_auc"], values["recall"] = ranking.T
                values["gauc"] = (
                    sums[:, -1] / sums[:, -2]
                    if self._grouped is None
                    else np.array([self._grouped.auc(one) for one in draws])
                )
        return np.stack([values[name] for name in METRICS], axis=1)


class _GroupedScores:
    """gAUC when blocks are not the groups: a group's rows have the weights of their blocks.

    Args:
        logits, labels, groups, block: [N].
        weights: [N], factors for the weights of the blocks; None: 1.
    """

    def __init__(
        self,
        logits: FloatArray,
        labels: FloatArray,
        groups: NDArray[np.integer],
        block: NDArray[np.integer],
        weights: FloatArray | None,
    ) -> None:
        group, self._count = places_of(groups)
        self._defined = not np.isnan(logits).any()
        order = order_by(group, logits)
        self._group, self._block = group[order], block[order]
        self._is_positive = np.asarray(labels)[order] > 0
        self._weights = None if weights is None else weights[order].astype(np.float64)
        self._first, self._last = runs_of(self._group, np.asarray(logits)[order])

    def auc(self, weights: NDArray[np.int64]) -> float:
        """Grouped AUC with ``weights`` of blocks."""
        if not self._defined:
            return float("nan")
        weight = weights.take(self._block)
        if self._weights is not None:
            weight = weight * self._weights
        rows, pairs, won = pairs_by_group(
            self._group, self._first, self._last, weight, self._is_positive, self._count
        )
        defined = pairs > 0
        if not defined.any():
            return float("nan")
        return float(np.average(won[defined] / pairs[defined], weights=rows[defined]))
