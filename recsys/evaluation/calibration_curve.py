"""How often predictions come true, by predicted probability."""

from typing import Any

import numpy as np

from recsys.evaluation.metrics import CALIBRATION_BINS, calibration_bins, probabilities
from recsys.evaluation.reading import Predictions


def calibration_rows(student: str, predictions: Predictions) -> list[dict[str, Any]]:
    """Rows of calibration.csv for each model's first seed: model, bin (equal numbers of rows,
    lowest predictions first), rows, predicted and observed rate.

    A model whose logits contain NaN has no rows.
    """
    found = []
    for model, seeds in predictions.logits.items():
        logits = seeds[0]
        if not len(logits) or np.isnan(logits).any():
            continue
        bins = calibration_bins(logits)
        each = np.ones(len(logits)) if predictions.weights is None else predictions.weights
        columns = (each, each * probabilities(logits), each * predictions.labels)
        total, predicted, observed = (
            np.bincount(bins, weights=one, minlength=CALIBRATION_BINS) for one in columns
        )
        rows = np.bincount(bins, minlength=CALIBRATION_BINS)
        found += [
            {
                "model": f"{student}/{model}",
                "bin": place,
                "rows": int(rows[place]),
                "predicted": float(predicted[place] / total[place]),
                "observed": float(observed[place] / total[place]),
            }
            for place in np.flatnonzero(rows)
        ]
    return found
