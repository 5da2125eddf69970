"""Logistic regression and boosted trees over a windows folder: each predicts a window, then learns
it."""

from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.schema import Schema

SMALL = 64  # ids of a feature that trees split on as categories; of larger ones they see statistics
PRIOR_ROWS = 20.0  # of the smoothed click rates
TREES = {
    "objective": "binary",
    "learning_rate": 0.1,
    "num_leaves": 15,
    "max_bin": 63,
    "min_data_in_leaf": 100,
    "num_threads": 1,
    "verbose": -1,
    "deterministic": True,
    "seed": 1,
}
TREE_COUNT = 80
LEARNING_RATE, BATCH = 0.1, 64


@dataclass(frozen=True)
class Log:
    """All rows of a windows folder, [N] each, in event time.

    ``ids`` [N, features] and ``dense`` [N, values], standardised by the past, missing values NaN;
    ``window`` is that of the event, ``learnt`` that in which the label became known (the number of
    windows, if in none).
    """

    schema: Schema
    example_id: NDArray[np.int64]
    domain: NDArray[np.int64]
    label: NDArray[np.float64]
    window: NDArray[np.int64]
    learnt: NDArray[np.int64]
    label_time: NDArray[np.int64]
    ids: NDArray[np.int64]
    dense: NDArray[np.float64]


def read_log(windows_dir: Path) -> Log:
    """The windows that ingest wrote, of features with one id each."""
    schema = Schema.load(windows_dir)
    frames = []
    for window, standard in zip(schema.windows, schema.standards(), strict=False):
        frame = pl.read_parquet(windows_dir / window.name / "part-*.parquet")
        frames.append(frame if standard is None else standard.apply(frame, schema.dense))
    rows = pl.concat(frames)
    ends = np.array([window.end_ms for window in schema.windows])
    names = [feature.name for feature in schema.categorical]
    return Log(
        schema,
        rows["example_id"].to_numpy(),
        rows["domain"].to_numpy().astype(np.int64),
        rows["label"].to_numpy().astype(np.float64),
        np.searchsorted(ends, rows["event_time"].to_numpy(), side="right"),
        np.searchsorted(ends, rows["label_time"].to_numpy(), side="right"),
        rows["label_time"].to_numpy(),
        rows.select(names).to_numpy().astype(np.int64),
        rows.select(schema.dense).cast(pl.Float64).to_numpy(),
    )


def base_rate(log: Log, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logits [N], NaN elsewhere: the mean label of the ``rows`` known before the window, 0.5
    before there is one."""
    logits = np.full(len(rows), np.nan)
    for window in range(len(log.schema.windows)):
        known = log.label[rows & (log.learnt < window)]
        mean = known.mean() if len(known) else 0.5
        logits[rows & (log.window == window)] = np.log(mean / (1.0 - mean))
    return logits


def logistic(log: Log, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logits [N], NaN elsewhere, of a main-effects regression that learns the ``rows`` once.

    A weight per id, per dense value and per domain; AdaGrad per coordinate, whose sums start at 1.
    """
    sizes = [feature.num_embeddings for feature in log.schema.categorical]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = log.ids + offsets[:-1]
    values = np.concatenate(
        [np.nan_to_num(log.dense), np.eye(len(log.schema.domains))[log.domain]], axis=1
    )
    weight, weight_sums = np.zeros(offsets[-1]), np.ones(offsets[-1])
    slope, slope_sums = np.zeros(values.shape[1]), np.ones(values.shape[1])
    mean = log.label[rows & (log.learnt == 0)].mean()
    bias = np.log(mean / (1.0 - mean))
    logits = np.full(len(rows), np.nan)

    def score(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return weight[ids[chosen]].sum(axis=1) + values[chosen] @ slope + bias

    for window in range(len(log.schema.windows)):
        shown = np.flatnonzero(rows & (log.window == window))
        logits[shown] = score(shown)
        known = np.flatnonzero(rows & (log.learnt == window))
        known = known[np.argsort(log.label_time[known], kind="stable")]
        for start in range(0, len(known), BATCH):
            batch = known[start : start + BATCH]
            error = 1.0 / (1.0 + np.exp(-score(batch))) - log.label[batch]
            repeated = np.repeat(error, ids.shape[1])
            gradient = np.bincount(ids[batch].ravel(), repeated, minlength=len(weight))
            met = gradient != 0
            weight_sums[met] += gradient[met] ** 2
            weight[met] -= LEARNING_RATE * gradient[met] / np.sqrt(weight_sums[met])
            gradient = values[batch].T @ error
            slope_sums += gradient**2
            slope -= LEARNING_RATE * gradient / np.sqrt(slope_sums)
            bias -= 0.5 * LEARNING_RATE * error.mean()
    return logits


def trees(log: Log, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logits [N], NaN elsewhere, of LightGBM refitted after each window on all ``rows`` known by
    then.

    It sees the dense values, the domain, features of few ids as categories, and of each id the
    number of rows (log1p) and the smoothed click rate known before the row's window.
    """
    small = [
        index
        for index, feature in enumerate(log.schema.categorical)
        if feature.num_embeddings <= SMALL
    ]
    statistics = _statistics(log, rows)
    inputs = np.concatenate(
        [log.dense, statistics, log.domain[:, None], log.ids[:, small]], axis=1
    ).astype(np.float32)
    first = log.dense.shape[1] + statistics.shape[1]
    categories = list(range(first, inputs.shape[1]))
    logits = np.full(len(rows), np.nan)
    logits[rows & (log.window == 0)] = 0.0
    for window in range(1, len(log.schema.windows)):
        known = np.flatnonzero(rows & (log.learnt < window))
        data = lightgbm.Dataset(
            inputs[known], log.label[known], categorical_feature=categories, free_raw_data=True
        )
        model = lightgbm.train(TREES, data, TREE_COUNT)
        shown = np.flatnonzero(rows & (log.window == window))
        logits[shown] = np.asarray(model.predict(inputs[shown], raw_score=True))
    return logits


def _statistics(log: Log, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N, 2 * features]: log1p of the rows of the id and its smoothed click rate, of what was known
    before each row's window."""
    columns = []
    for index, feature in enumerate(log.schema.categorical):
        ids, size = log.ids[:, index], feature.num_embeddings
        counts, clicks = np.zeros(size), np.zeros(size)
        count, rate = np.zeros(len(rows)), np.zeros(len(rows))
        for window in range(len(log.schema.windows)):
            shown = log.window == window
            prior = clicks.sum() / counts.sum() if counts.sum() else 0.5
            count[shown] = np.log1p(counts[ids[shown]])
            smoothed = (clicks + PRIOR_ROWS * prior) / (counts + PRIOR_ROWS)
            rate[shown] = smoothed[ids[shown]]
            known = rows & (log.learnt == window)
            counts += np.bincount(ids[known], minlength=size)
            clicks += np.bincount(ids[known], log.label[known], minlength=size)
        columns += [count, rate]
    return np.stack(columns, axis=1)
