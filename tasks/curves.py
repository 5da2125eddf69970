"""Curves from a model's metrics.json."""

import json
from pathlib import Path

CURVES = ("ne", "auc", "logloss", "calibration")
DIAGNOSTICS = (
    "missing_scores",
    "clip_rate",
    "gradient_ratio",
    "gradient_cosine",
    "serving_calibration",
    "distillation_calibration",
)
SKIPPED = "skipped_batches"


def curves_of(folder: Path, first_window: int = 0) -> dict[str, list[float | None]]:
    """Per-window metrics, diagnostics and skipped batches of one model, as MLflow curves
    ``window/ne`` and so on.

    For a further task they are ``window/ne_<task>``. Values are in window order, None where
    undefined; windows before ``first_window`` are left out.
    """
    windows = json.loads((folder / "metrics.json").read_text())["windows"][first_window:]
    further = {
        key: None
        for window in windows
        for key in window
        if key.startswith(tuple(f"{c}_" for c in CURVES))
    }
    curves = {
        key: [window.get(key) for window in windows] for key in (*CURVES, *DIAGNOSTICS, *further)
    }
    if any(SKIPPED in window for window in windows):
        curves[SKIPPED] = [window.get(SKIPPED, 0) for window in windows]
    return {
        f"window/{key}": curve
        for key, curve in curves.items()
        if any(value is not None for value in curve)
    }
