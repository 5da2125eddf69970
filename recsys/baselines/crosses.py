"""Choose pairs of columns worth a feature of their own, by their gain on early windows.

Main effects are fitted first: the logistic regression, then a correction per column. On top of
them, each pair of columns gets a weight per distinct pair of ids. Every window is predicted before
its labels are learnt. The pair with the largest gain is chosen, and the others are measured again
on top of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveInt
from scipy import stats
from scipy.special import expit

from recsys.baselines.settings import BaselinesSettings
from recsys.baselines.training import make
from recsys.config import InputError, Settings
from recsys.data.loader import WindowReader
from recsys.data.schema import WEIGHT, window_parts
from recsys.evaluation.metrics import places_of, row_losses
from recsys.evaluation.resampling import blocks_of
from recsys.evaluation.settings import EvaluateSettings

Ids = NDArray[np.int64]
Logits = NDArray[np.float64]
MISSING = 0  # the row of missing values in every table
PRIOR_PRECISION = 4.0  # a cross moves a logit by 0.5 or so; wider priors follow rare ids' noise
LARGEST_STEP = 1.0  # one Newton step overshoots where predictions are far off


class CrossChoiceSettings(Settings):
    """Which pairs may be chosen.

    Attributes:
        most: how many pairs at most.
        largest: a pair with more distinct values in the early windows is not tried.
        least_gain: a pair must lower NE by this many percent, besides an interval above 0.
    """

    most: PositiveInt = 3
    largest: PositiveInt = 200_000
    least_gain: NonNegativeFloat = Field(default=0.1, allow_inf_nan=False)


@dataclass(frozen=True)
class Cross:
    """A pair and its gain over everything chosen before it.

    Attributes:
        columns: the stored names of the two features.
        gain, low, high: by how many percent NE falls, and the ends of its interval, corrected for
            the number of pairs tried.
        ids: distinct pairs of values in the early windows.
    """

    columns: tuple[str, str]
    gain: float
    low: float
    high: float
    ids: int


@dataclass(frozen=True)
class CrossChoice:
    """The chosen pairs in order, and every pair's gain over the main effects, largest first;
    ``too_large`` were not tried."""

    chosen: list[Cross]
    tried: list[Cross]
    too_large: list[tuple[str, str]]


@dataclass(frozen=True)
class _Rows:
    """The N rows of the early windows.

    Attributes:
        label: [N], 0 or 1.
        weight: [N].
        block: [N], the unit of the interval, from 0.
        predicted: rows of each window.
        learnt: rows whose labels become known in each window.
    """

    label: NDArray[np.float64]
    weight: NDArray[np.float64]
    block: NDArray[np.integer]
    predicted: list[NDArray[np.integer]]
    learnt: list[NDArray[np.integer]]


def choose_crosses(
    windows_dir: Path,
    columns: Sequence[str],
    known: Sequence[tuple[str, str]],
    evaluate: EvaluateSettings,
    baselines: BaselinesSettings,
    settings: CrossChoiceSettings,
) -> CrossChoice:
    """Choose pairs of ``columns`` on the windows before ``evaluate.first_evaluation_window``.

    Args:
        columns: stored names of features with one id per example.
        known: pairs that are features already.

    Raises:
        InputError: there are fewer than two early windows, columns or blocks, or no pair is left.
    """
    reader = WindowReader(windows_dir)
    early = reader.windows[: evaluate.first_evaluation_window]
    where = evaluate.where("first_evaluation_window")
    if len(early) < 2:
        raise InputError(
            f"{where}: crosses are chosen on the windows before it, of which there must be at "
            f"least 2, got {len(early)}"
        )
    if len(columns) < 2:
        raise InputError(
            f"{windows_dir}: a cross needs two categorical columns with one value per row; the "
            f"data have {len(columns)}"
        )
    model = make("logistic", reader, None, baselines)
    frames = []
    for place, window in enumerate(early):
        logits = model.predict(window).select("example_id", "logit")
        own = ["example_id", "event_time", "label_time", "group", "label"]
        parts = pl.read_parquet(
            window_parts(windows_dir, window),
            columns=[*own, *reader.schema.weight_columns, *columns],
        )
        frames.append(
            parts.join(logits, on="example_id", how="inner").with_columns(window=pl.lit(place))
        )
        model.learn(window)
    frame = pl.concat(frames)
    rows = _rows(frame, [window.end_ms for window in early], evaluate)
    if int(rows.block.max()) < 1:
        raise InputError(f"{where}: an interval needs at least 2 {evaluate.blocks}s of rows")
    ids = {name: frame[name].cast(pl.Int64).to_numpy() for name in columns}
    base = frame["logit"].cast(pl.Float64).to_numpy()
    for own in ids.values():
        # What the regression has not learnt of a column yet would count as a gain of its pairs
        corrected = _progressive(base, places_of(own)[0], rows)
        if _loss(corrected, rows).sum() < _loss(base, rows).sum():
            base = corrected
    taken = {frozenset(pair) for pair in known}
    pairs = [pair for pair in combinations(columns, 2) if frozenset(pair) not in taken]
    if not pairs:
        raise InputError(f"{windows_dir}: every pair of categorical columns is a cross already")
    return _select(base, ids, pairs, rows, evaluate.confidence, settings)


def _select(
    base: Logits,
    ids: dict[str, Ids],
    pairs: Sequence[tuple[str, str]],
    rows: _Rows,
    confidence: float,
    settings: CrossChoiceSettings,
) -> CrossChoice:
    tail = (1 - confidence) / len(pairs) / 2
    tried, too_large = [], []
    for pair in pairs:
        codes, count = _joint(ids, pair)
        if count > settings.largest:
            too_large.append(pair)
        else:
            tried.append(_measured(pair, count, base, _progressive(base, codes, rows), rows, tail))
    tried.sort(key=lambda one: -one.gain)
    chosen: list[Cross] = []
    left = tried
    while len(chosen) < settings.most:
        left = [one for one in left if one.low > 0 and one.gain >= settings.least_gain]
        if not left:
            break
        best = max(left, key=lambda one: one.gain)
        chosen.append(best)
        base = _progressive(base, _joint(ids, best.columns)[0], rows)
        again = []
        for one in left:
            if one is not best:
                after = _progressive(base, _joint(ids, one.columns)[0], rows)
                again.append(_measured(one.columns, one.ids, base, after, rows, tail))
        left = again
    return CrossChoice(chosen, tried, too_large)


def _rows(frame: pl.DataFrame, ends_ms: Sequence[int], evaluate: EvaluateSettings) -> _Rows:
    window = frame["window"].to_numpy()
    group, time = frame["group"].to_numpy(), frame["event_time"].to_numpy()
    # A label that is not known before the last early window ends is never learnt
    known = np.searchsorted(ends_ms, frame["label_time"].to_numpy(), side="right")
    return _Rows(
        label=frame["label"].cast(pl.Float64).to_numpy(),
        weight=frame[WEIGHT].cast(pl.Float64).to_numpy()
        if WEIGHT in frame.columns
        else np.ones(frame.height),
        block=places_of(blocks_of(evaluate.blocks, group, time, window))[0],
        predicted=[np.flatnonzero(window == place) for place in range(len(ends_ms))],
        learnt=[np.flatnonzero(known == place) for place in range(len(ends_ms))],
    )


def _joint(ids: dict[str, Ids], pair: tuple[str, str]) -> tuple[Ids, int]:
    """A code per distinct pair, and their number; -1 where one of the two is missing."""
    first, second = (ids[name] for name in pair)
    codes, count = places_of(first * (int(second.max()) + 1) + second)
    return np.where((first == MISSING) | (second == MISSING), -1, codes), count


def _progressive(offset: Logits, codes: NDArray[np.integer], rows: _Rows) -> Logits:
    """``offset`` [N] plus a weight per code, learnt from the labels known before each window.

    A weight is the mode of a Gaussian that each window's labels narrow by one Newton step; rows
    with code -1 have none.
    """
    logits = offset.copy()
    size = int(codes.max()) + 2  # the last one is that of code -1
    weights, precision = np.zeros(size), np.full(size, PRIOR_PRECISION)
    places = np.where(codes < 0, size - 1, codes)
    for predicted, learnt in zip(rows.predicted, rows.learnt, strict=True):
        logits[predicted] += weights[places[predicted]]
        rate, weight, own = expit(logits[learnt]), rows.weight[learnt], places[learnt]
        slope = np.bincount(own, weight * (rows.label[learnt] - rate), minlength=size)
        precision += np.bincount(own, weight * rate * (1 - rate), minlength=size)
        weights += np.clip(slope / precision, -LARGEST_STEP, LARGEST_STEP)
        weights[-1] = 0.0
    return logits


def _loss(logits: Logits, rows: _Rows) -> NDArray[np.float64]:
    return rows.weight * row_losses(logits, rows.label)


def _measured(
    columns: tuple[str, str], ids: int, before: Logits, after: Logits, rows: _Rows, tail: float
) -> Cross:
    """The gain of ``after`` over ``before`` on the windows after the first, in percent of NE, with
    Student's interval over blocks."""
    judged = np.concatenate(rows.predicted[1:])
    old = _loss(before, rows)
    gained = np.bincount(rows.block[judged], (old - _loss(after, rows))[judged])
    total = np.bincount(rows.block[judged], old[judged])
    present = total > 0
    gain = gained.sum() / total.sum()
    blocks = int(present.sum())
    # The error of a ratio of sums over blocks, to first order
    residual = (gained - gain * total)[present]
    error = np.sqrt(blocks / max(blocks - 1, 1) * (residual**2).sum()) / total.sum()
    width = float(stats.t.isf(tail, max(blocks - 1, 1))) * error
    return Cross(
        columns, 100 * float(gain), 100 * float(gain - width), 100 * float(gain + width), ids
    )
