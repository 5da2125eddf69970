"""Gradient-boosted trees on dense features, small categories and statistics of the past."""

from pathlib import Path

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.baselines.base_rate import starting_logits
from recsys.baselines.settings import TreesSettings
from recsys.baselines.statistics import PastStatistics
from recsys.data.encoding import dense_values
from recsys.data.schema import WEIGHT, Schema, Window, window_parts
from recsys.evaluation.predictions import PREDICTION_SCHEMA

Known = tuple[NDArray[np.float32], ...]  # features [N, W], labels [N], weights [N]


class Trees:
    """LightGBM, trained from scratch on the examples whose labels are known.

    Dense features are read as stored: trees need no standardising, and can split on missing values.
    Of a list, they see only its length.

    Args:
        domain: only this domain's examples are used; None: all, with the domain as a category.
    """

    def __init__(
        self, windows_dir: Path, schema: Schema, domain: int | None, settings: TreesSettings
    ) -> None:
        self._windows_dir, self._schema = windows_dir, schema
        self._domain, self._settings = domain, settings
        ids = [feature for feature in schema.categorical if feature.kind == "id"]
        self._ids = [feature.name for feature in ids]
        self._lists = [feature.name for feature in schema.categorical if feature.kind == "list"]
        small = [one.name for one in ids if one.num_embeddings <= settings.largest_category]
        self._categories = small if domain is not None else ["domain", *small]
        self._statistics = PastStatistics(self._ids, settings.smoothing, schema.initial_base_rate)
        self._booster: lightgbm.Booster | None = None
        self._windows = 0
        # Features, labels and label times, of examples whose labels are not known yet and of the
        # others
        self._waiting: list[tuple[NDArray[np.float32], pl.DataFrame]] = []
        self._past: list[Known] = []
        self._due: Known | None = None  # examples for the next training

    def predict(self, window: Window) -> pl.DataFrame:
        """Predictions of the examples whose event lies in ``window``, as PREDICTION_SCHEMA."""
        frame, features = self._note(window)
        self._fit()
        if self._booster is None or not frame.height:
            logits = starting_logits(self._schema)[frame["domain"].to_numpy()]
        else:
            logits = np.asarray(self._booster.predict(features, raw_score=True))
        predicted = frame.with_columns(pl.Series("logit", logits))
        predicted = predicted.select(*PREDICTION_SCHEMA, *self._schema.weight_columns)
        return predicted.cast(PREDICTION_SCHEMA)  # type: ignore[arg-type]

    def skip(self, window: Window) -> None:
        """Note the examples whose event lies in ``window``, without predicting them again."""
        self._note(window)

    def learn(self, window: Window) -> None:
        """Take in the examples whose labels have become known by the end of ``window``."""
        waiting, self._waiting = self._waiting, []
        for features, frame in waiting:
            is_known = frame["label_time"] < window.end_ms
            known = frame.filter(is_known)
            self._statistics.add(known)
            own = self._schema.weight_columns
            weights = known[own[0]].to_numpy() if own else np.ones(known.height, np.float32)
            self._past.append((features[is_known.to_numpy()], known["label"].to_numpy(), weights))
            if known.height < frame.height:
                self._waiting.append((features[~is_known.to_numpy()], frame.filter(~is_known)))
        whole = [np.concatenate(parts) for parts in zip(*self._past, strict=True)]
        newest = slice(max(len(whole[0]) - self._settings.max_rows, 0), None)
        self._past = [tuple(one[newest] for one in whole)]

    def _note(self, window: Window) -> tuple[pl.DataFrame, NDArray[np.float32]]:
        """The examples whose event is in ``window`` and their features; they are kept until their
        labels are known."""
        is_due = self._windows % self._settings.refit_every_windows == 0
        if is_due and self._past and len(np.unique(self._past[0][1])) > 1:
            self._due = self._past[0]
        self._windows += 1
        frame = self._read(window)
        features = self._features(frame)
        own = ["label", "label_time", *self._schema.weight_columns]
        self._waiting.append((features, frame.select(*own, *self._ids)))
        return frame, features

    def _fit(self) -> None:
        if self._due is None:
            return
        (features, labels, weights), self._due = self._due, None
        width = features.shape[1]
        settings = self._settings
        parameters = {
            "objective": "binary",
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.leaves,
            "min_data_in_leaf": settings.smallest_leaf,
            "max_bin": settings.bins,
            "num_threads": settings.threads,
            "seed": settings.seed,
            "deterministic": True,
            "force_row_wise": True,  # the same trees as by column, in 0.7 of the time
            "verbose": -1,
        }
        categories = list(range(width - len(self._categories), width))
        own = weights if self._schema.weight_columns else None
        data = lightgbm.Dataset(features, labels, weight=own, categorical_feature=categories)
        self._booster = lightgbm.train(parameters, data, settings.trees)

    def _read(self, window: Window) -> pl.DataFrame:
        columns = ["example_id", "group", "domain", "event_time", "label_time", "label"]
        columns += [*self._schema.weight_columns, *self._schema.dense, *self._ids, *self._lists]
        frame = pl.read_parquet(window_parts(self._windows_dir, window), columns=columns)
        if self._schema.mean_weight is not None:
            frame = frame.with_columns(pl.col(WEIGHT) / self._schema.mean_weight)
        return frame if self._domain is None else frame.filter(pl.col("domain") == self._domain)

    def _features(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        """[B, dense features + lists + 2 * ids + categories], the categories last."""
        lengths = [frame[name].list.len().fill_null(0).to_numpy() for name in self._lists]
        categories = [frame[name].to_numpy() for name in self._categories]
        parts = [
            dense_values(frame, self._schema.dense),
            *(column[:, None] for column in lengths),
            self._statistics.of(frame),
            *(column[:, None] for column in categories),
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)
