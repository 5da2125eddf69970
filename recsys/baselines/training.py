"""Predict each window, then train on what became known in it, with every baseline."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
# Costliest first, so that no core waits long for another
SCOPES: dict[BaselineName, tuple[str, ...]] = {
    "trees": ("all", "own"),
    "logistic": ("all", "own"),
    "base_rate": ("own",),
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


@dataclass
class Contender:
    """A baseline in one scope.

    Attributes:
        folder: where its results go.
        models: one per domain, or one for all.
        history: metrics of each window so far.
    """

    folder: Path
    models: list[Baseline]
    history: list[dict[str, Any]] = field(default_factory=list)

    def path(self, window: Window) -> Path:
        """The file of a window's predictions."""
        return self.folder / PREDICTIONS_DIR / f"{window.name}.parquet"


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
    domains = range(len(reader.schema.domains))
    contenders = [
        Contender(
            output_dir / name / scope,
            [
                make(name, reader, domain, settings)
                for domain in (domains if scope == "own" else [None])
            ],
        )
        for name in SCOPES
        if name in settings.run
        for scope in SCOPES[name]
        if scope in scopes
    ]
    rows = sum(window.rows for window in reader.windows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixed order of sums; the batches are too small for more threads
    try:
        with (
            RowProgress("baselines", rows, counted="by every baseline") as progress,
            ThreadPoolExecutor(settings.parallel) as pool,
        ):
            for window in reader.windows:
                _predict_then_learn(contenders, window, pool)
                progress.advance(window.rows)
    finally:
        torch.set_num_threads(threads)
    for contender in contenders:
        write_json(contender.folder / METRICS_FILE, {"windows": contender.history})


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
    contenders: Sequence[Contender], window: Window, pool: ThreadPoolExecutor
) -> None:
    """Predict and train on a window with all models, the parts of a baseline side by side: LightGBM
    and torch release the interpreter for the others."""
    running = [
        [pool.submit(_step, model, window, contender.path(window)) for model in contender.models]
        for contender in contenders
    ]
    for contender, futures in zip(contenders, running, strict=True):
        found = [future.result() for future in futures]
        path = contender.path(window)
        if path.is_file():
            predictions = pl.read_parquet(path)
        else:
            predictions = pl.concat(one for one in found if one is not None)
            predictions = predictions.sort("event_time", "example_id")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = partial_path(path)
            predictions.write_parquet(partial)
            publish_file(partial, path)
        contender.history.append({"window": window.name, **measure(predictions)})


def _step(model: Baseline, window: Window, path: Path) -> pl.DataFrame | None:
    """Predict a window, unless ``path`` holds its predictions, and train on it."""
    predicted = None
    if path.is_file():
        model.skip(window)
    else:
        predicted = model.predict(window)
    model.learn(window)
    return predicted
