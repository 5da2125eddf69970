"""A model's output for each window: predictions and their metrics."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from recsys.data.schema import MAIN_TASK, WEIGHT, task_columns
from recsys.evaluation.metrics import compute_metrics

PREDICTIONS_DIR = "predictions"
METRICS_FILE = "metrics.json"
# If the log's rows have weights, there is a column for these too
PREDICTION_SCHEMA = {
    "example_id": pl.Int64,
    "group": pl.Int64,
    "domain": pl.Int32,
    "event_time": pl.Int64,
    "label": pl.Float32,
    "logit": pl.Float32,
}


def measure(predictions: pl.DataFrame, tasks: Sequence[str] = (MAIN_TASK,)) -> dict[str, Any]:
    """Metrics of a frame of predictions by name, for each of ``tasks`` on the rows with its label;
    ``rows`` counts all rows once."""
    found: dict[str, Any] = {}
    labels, logits = task_columns("label", tasks), task_columns("logit", tasks)
    for task, label, logit in zip(tasks, labels, logits, strict=True):
        known = predictions.filter(pl.col(label).is_not_nan())
        columns = [logit, label, "group", *([WEIGHT] if WEIGHT in known.columns else [])]
        metrics = compute_metrics(*(known[name].to_numpy() for name in columns)).as_dict()
        found |= {
            name if task == tasks[0] else f"{name}_{task}": value for name, value in metrics.items()
        }
    return found | {"rows": predictions.height}
