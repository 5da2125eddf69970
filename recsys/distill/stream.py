"""Progressive validation: for every window in turn predict, measure, then train on what became known."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import Window
from recsys.distill import ranks
from recsys.evaluation.metrics import compute_metrics
from recsys.progress import RowProgress
from recsys.training.engine import Engine, LossFunction

PREDICTIONS_DIR = "predictions"
METRICS_FILE = "metrics.json"
PREDICTION_SCHEMA = {
    "example_id": pl.Int64,
    "group": pl.Int64,
    "domain": pl.Int32,
    "event_time": pl.Int64,
    "label": pl.Float32,
    "logit": pl.Float32,
}


@dataclass(frozen=True)
class Stream:
    """What one model is shown: windows of ``reader``, of one ``domain`` (None: all), with or without scores.

    ``batch_size`` is global.
    """

    reader: WindowReader
    batch_size: int
    domain: int | None = None
    scores_dir: Path | None = None

    def rows(self) -> int:
        """Examples over all windows."""
        return sum(self.reader.rows(window, self.domain) for window in self.reader.windows)


def run_stream(
    engine: Engine,
    loss_function: LossFunction,
    stream: Stream,
    output_dir: Path,
    progress: RowProgress,
    after_window: Callable[[Window, float], None] | None = None,
) -> list[dict[str, Any]]:
    """Predict and train ``engine`` over all windows; called by every rank.

    Writes predictions/<window>.parquet and metrics.json in ``output_dir``. Each window advances
    ``progress`` by its examples twice: once predicted, once trained on.

    Args:
        loss_function: outputs and batch to loss [B].
        after_window: called on every rank after training on a window, with the window's NE.

    Returns:
        Metrics of each window, as in metrics.json; the same on every rank.
    """
    if ranks.rank() == 0:
        (output_dir / PREDICTIONS_DIR).mkdir(parents=True, exist_ok=True)
    history: list[dict[str, Any]] = []
    for window in stream.reader.windows:
        batches = stream.reader.event_batches(
            window, stream.batch_size, ranks.rank(), ranks.world_size(), domain=stream.domain
        )
        predictions = predict(engine, batches, progress)
        measured: dict[str, Any] = {}
        if predictions is not None:
            predictions.write_parquet(output_dir / PREDICTIONS_DIR / f"{window.name}.parquet")
            measured = measure(predictions)
        measured = ranks.broadcast(measured)
        train_loss = train(engine, loss_function, window, stream, progress)
        history.append({"window": window.name, **measured, "train_loss": train_loss})
        if after_window is not None:
            after_window(window, measured["ne"])
    if ranks.rank() == 0:
        write_json(output_dir / METRICS_FILE, {"windows": history})
    return history


def predict(engine: Engine, batches: Iterable[Batch], progress: RowProgress) -> pl.DataFrame | None:
    """Predict ``batches``; rank 0 gets every rank's real rows by (event_time, example_id), others None."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in PREDICTION_SCHEMA}
    for batch in batches:
        logit = engine.predict(batch)  # [B]
        real = batch.weight > 0  # [B]
        tensors = {name: getattr(batch, name) for name in PREDICTION_SCHEMA if name != "logit"}
        for name, value in {**tensors, "logit": logit}.items():
            columns[name].append(value[real].float().cpu().numpy() if name == "logit" else value[real].cpu().numpy())
        progress.advance(batch.global_rows)
    gathered = ranks.gather({name: np.concatenate(parts) if parts else np.empty(0) for name, parts in columns.items()})
    if ranks.rank() != 0:
        return None
    frames = [pl.DataFrame(shard).cast(PREDICTION_SCHEMA) for shard in gathered]  # type: ignore[arg-type]
    return pl.concat(frames).sort("event_time", "example_id")


def train(
    engine: Engine, loss_function: LossFunction, window: Window, stream: Stream, progress: RowProgress
) -> float | None:
    """Train once on the examples whose label became known in ``window``; their mean loss, None without any."""
    batches = stream.reader.label_batches(
        window,
        stream.batch_size,
        ranks.rank(),
        ranks.world_size(),
        domain=stream.domain,
        scores_dir=stream.scores_dir,
    )
    total = rows = 0.0
    for batch in batches:
        total += engine.train_step(batch, loss_function) * batch.global_rows
        rows += batch.global_rows
        progress.advance(batch.global_rows)
    return ranks.mean_over_ranks([total])[0] / rows if rows else None


def measure(predictions: pl.DataFrame) -> dict[str, Any]:
    """Metrics of a predictions frame, by name."""
    logit, label, group = (predictions[name].to_numpy() for name in ("logit", "label", "group"))
    return compute_metrics(logit, label, group).as_dict()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` with sorted keys; NaN and infinities become null."""
    path.write_text(json.dumps(finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """``value`` with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
