"""Predict each window, then train on what became known in it, with every baseline."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from recsys.baselines.base_rate import BaseRate
from recsys.baselines.logistic import LogisticRegression
from recsys.baselines.settings import BaselineName, BaselinesSettings
from recsys.baselines.trees import Trees
from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import Window
from recsys.evaluation.predictions import (
    METRICS_FILE,
    PREDICTION_SCHEMA,
    PREDICTIONS_DIR,
    measure,
)
from recsys.files import partial_path, publish_file, write_json
from recsys.progress import RowProgress

ROWS_AT_ONCE = 16_384  # held in memory
SCOPES: dict[BaselineName, tuple[str, ...]] = {
    "base_rate": ("own",),
    "logistic": ("own", "all"),
    "trees": ("own", "all"),
}


class Baseline(Protocol):
    """A model that predicts a window from what it was trained on so far."""

    def predict(self, window: Window) -> pl.DataFrame:
        """Predictions of the examples whose event lies in ``window``, as PREDICTION_SCHEMA."""
        ...

    def skip(self, window: Window) -> None:
        """Note the examples whose event is in ``window``, without predicting them again."""
        ...

    def learn(self, window: Window) -> None:
        """Take in the examples whose labels have become known in ``window``."""
        ...


class BatchModel(Protocol):
    """A model that predicts and trains on the examples it is given."""

    def predict(self, batch: Batch) -> NDArray[np.floating]:
        """Logits [B]."""
        ...

    def learn(self, batch: Batch) -> None:
        """Train on examples whose labels have become known."""
        ...


def train_baselines(
    windows_dir: Path,
    settings: BaselinesSettings,
    output_dir: Path,
    scopes: Sequence[str] = ("own", "all"),
) -> None:
    """Predict and train on all windows with every baseline, for the data's main task only.

    Writes <baseline>/<scope>/predictions/<window>.parquet and <baseline>/<scope>/metrics.json in
    ``output_dir``, in the same form as for a teacher or student. In scope ``own``, an example is
    predicted by a model that sees only its domain's examples; in scope ``all``, by one that sees
    every domain's. The same windows and settings give the same bytes. A window whose predictions
    exist is only trained on, so a call continues one that was stopped or had fewer windows.
    """
    reader = WindowReader(windows_dir)
    chosen: list[tuple[BaselineName, str]] = [
        (name, scope)
        for name in SCOPES
        if name in settings.run
        for scope in SCOPES[name]
        if scope in scopes
    ]
    domains = range(len(reader.schema.domains))
    rows = sum(window.rows for window in reader.windows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixed order of sums; the batches are too small for more threads
    try:
        with RowProgress("baselines", rows * len(chosen), counted="by every baseline") as progress:

            def run(one: tuple[BaselineName, str]) -> None:
                name, scope = one
                models = [
                    make(name, reader, domain, settings)
                    for domain in (domains if scope == "own" else [None])
                ]
                _predict_then_learn(models, reader.windows, output_dir / name / scope, progress)

            # Costliest first; LightGBM and torch release the interpreter for the others
            with ThreadPoolExecutor(settings.parallel) as pool:
                list(pool.map(run, reversed(chosen)))
    finally:
        torch.set_num_threads(threads)


def make(
    name: BaselineName, reader: WindowReader, domain: int | None, settings: BaselinesSettings
) -> Baseline:
    """An untrained baseline that sees only ``domain`` (None: all domains)."""
    schema = reader.schema
    if name == "trees":
        return Trees(reader.windows_dir, schema, domain, settings.trees)
    if name == "logistic":
        model = LogisticRegression(schema, settings.logistic)
        return OnBatches(model, reader, domain, settings.logistic.batch_size)
    return OnBatches(BaseRate(schema), reader, domain, ROWS_AT_ONCE)


class OnBatches:
    """A baseline that reads the batches that rankers read.

    Args:
        step: rows that ``model`` trains on at a time; it is given whole multiples of them.
    """

    def __init__(
        self, model: BatchModel, reader: WindowReader, domain: int | None, step: int
    ) -> None:
        self._model, self._reader, self._domain = model, reader, domain
        self._rows = step * max(ROWS_AT_ONCE // step, 1)

    def predict(self, window: Window) -> pl.DataFrame:
        """Predictions of the examples whose event lies in ``window``, as PREDICTION_SCHEMA."""
        own = self._reader.schema.weight_columns
        schema = PREDICTION_SCHEMA | dict.fromkeys(own, pl.Float32)
        given = [name for name in schema if name != "logit"]
        frames = [pl.DataFrame(schema=schema)]
        for batch in self._reader.event_batches(window, self._rows, 0, 1, domain=self._domain):
            columns = {name: getattr(batch, name).numpy() for name in given}
            predicted = pl.DataFrame(columns | {"logit": self._model.predict(batch)})
            frames.append(predicted.select(schema.keys()).cast(schema))  # type: ignore[arg-type]
        return pl.concat(frames)

    def skip(self, window: Window) -> None:
        """Does nothing: batches are read when they are trained on."""

    def learn(self, window: Window) -> None:
        """Take in the examples whose labels have become known in ``window``."""
        for batch in self._reader.label_batches(window, self._rows, 0, 1, domain=self._domain):
            self._model.learn(batch)


def _predict_then_learn(
    models: Iterable[Baseline], windows: Iterable[Window], folder: Path, progress: RowProgress
) -> None:
    (folder / PREDICTIONS_DIR).mkdir(parents=True, exist_ok=True)
    history: list[dict[str, Any]] = []
    for window in windows:
        path = folder / PREDICTIONS_DIR / f"{window.name}.parquet"
        if path.is_file():
            predictions = pl.read_parquet(path)
            for model in models:
                model.skip(window)
        else:
            found = pl.concat([model.predict(window) for model in models])
            predictions = found.sort("event_time", "example_id")
            partial = partial_path(path)
            predictions.write_parquet(partial)
            publish_file(partial, path)
        history.append({"window": window.name, **measure(predictions)})
        for model in models:
            model.learn(window)
        progress.advance(window.rows)
    write_json(folder / METRICS_FILE, {"windows": history})
