"""Fit a calibration on predictions made before their labels were known."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.schema import WEIGHT, Schema
from recsys.evaluation.metrics import calibration, normalized_entropy
from recsys.evaluation.predictions import PREDICTIONS_DIR
from recsys.serving.calibration import UNCALIBRATED, CalibrationMap, Isotonic, Platt
from recsys.serving.settings import ExportSettings

SMALLEST_CLASS = 20  # fewest positives and fewest negatives for a fit
STEPS, ENOUGH = 50, 1e-10  # of Newton's method
# Pseudo-rows that support the uncalibrated network, so that few labels change it little
TO_ITSELF = 1.0
SMALLEST_PROBABILITY = 1e-12
ERRORS = 2.0  # standard errors by which a map must have been better
Kind = Literal["platt", "isotonic"]
# Logits, labels and weights [N]
Predictions = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def calibration_of(
    model_dir: Path, schema: Schema, tasks: Sequence[str], settings: ExportSettings
) -> dict[str, Any]:
    """The contents of calibration.json: a map per domain and task, and its results on the last
    window.

    Maps are fitted on the windows before the last, without the first one, which an untrained model
    predicts; only the last window is reported. A domain or task has no map if it has too few labels
    or, with ``auto``, if :func:`chosen_kind` chooses none.

    If the log has kept only a share of the rows with label 0, fit and report use the rows that
    exist, and the maps give probabilities over all rows (He et al. 2014, section 6.3).

    Args:
        model_dir: folder with predictions/<window>.parquet for every window.
        schema: the data's schema, with its windows.
        tasks: the tasks that the model predicts.
    """
    names = [window.name for window in schema.windows]
    before_last = names[:-1][1:]
    fitted_on = before_last[-settings.calibration_windows :]
    if settings.calibration == "off" or not fitted_on:
        return {"maps": _of_all_rows({}, schema)}
    frames = [_read(model_dir, name) for name in before_last[-2 * settings.calibration_windows :]]
    last = _read(model_dir, names[-1])
    maps: dict[str, dict[str, Platt | Isotonic]] = {}
    reported: list[dict[str, Any]] = []
    for index, domain in enumerate(schema.domains):
        for task in tasks:
            windows = [_of(frame, schema, index, task) for frame in frames]
            logits, labels, weights = joined(windows[-len(fitted_on) :])
            if not _has_both(labels):
                continue
            kind: Kind | None
            if settings.calibration == "auto":
                kinds: list[Kind] = ["platt"]
                if len(labels) >= settings.isotonic_rows:
                    kinds.append("isotonic")
                kind = chosen_kind(windows, kinds, settings.calibration_windows)
            else:
                kind = settings.calibration
            fitted = UNCALIBRATED
            if kind is not None:
                fitted = maps.setdefault(domain, {})[task] = FITS[kind](logits, labels, weights)
            judged = _of(last, schema, index, task)
            before, after = (_measured(one, *judged) for one in (UNCALIBRATED, fitted))
            reported.append(
                {"domain": domain, "task": task, "rows": len(judged[1]), "kind": kind or "none"}
                | {"before": before, "after": after}
            )
    return {
        "maps": _of_all_rows(maps, schema),
        "fitted_on": fitted_on,
        "reported_on": names[-1],
        "report": reported,
    }


def _of_all_rows(
    maps: Mapping[str, Mapping[str, Platt | Isotonic]], schema: Schema
) -> dict[str, dict[str, dict[str, Any]]]:
    """The maps in the form of calibration.json, corrected for dropped rows with label 0."""
    rates = schema.negative_rates or [1.0] * len(schema.domains)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for domain, rate in zip(schema.domains, rates, strict=True):
        own = dict(maps.get(domain, {}))
        if rate < 1.0:
            own.setdefault(schema.tasks[0], UNCALIBRATED)
        for task, one in own.items():
            kind = "isotonic" if isinstance(one, Isotonic) else "platt"
            whole = one.at_negative_rate(rate)
            found.setdefault(domain, {})[task] = {"kind": kind, **asdict(whole)}
    return found


def chosen_kind(windows: Sequence[Predictions], kinds: Sequence[Kind], count: int) -> Kind | None:
    """The kind of map that would have lowered the log loss most so far; None if none would have, by
    more than two standard errors.

    Each of the last ``count`` windows is predicted with a map fitted on the ``count`` windows
    before it, as the next window will be.
    """
    saved: dict[Kind, list[NDArray[np.float64]]] = {kind: [np.zeros(0)] for kind in kinds}
    for place in range(max(1, len(windows) - count), len(windows)):
        past = joined(windows[max(0, place - count) : place])
        logits, labels, weights = windows[place]
        if _has_both(past[1]):
            before = _losses(logits.astype(np.float64), labels)
            for kind in kinds:
                after = _losses(_logits_of(FITS[kind](*past), logits), labels)
                saved[kind].append(weights * (before - after))
    best: tuple[float, Kind | None] = (0.0, None)
    for kind in kinds:
        rows = np.concatenate(saved[kind])
        if len(rows) and rows.sum() > max(best[0], ERRORS * math.sqrt(len(rows) * rows.var())):
            best = float(rows.sum()), kind
    return best[1]


def joined(windows: Sequence[Predictions]) -> Predictions:
    """Logits, labels and weights of several windows."""
    logits, labels, weights = zip(*windows, strict=True)
    return np.concatenate(logits), np.concatenate(labels), np.concatenate(weights)


def _has_both(labels: NDArray[np.floating]) -> bool:
    return min(labels.sum(), (1 - labels).sum()) >= SMALLEST_CLASS


def fit_platt(
    logits: NDArray[np.floating], labels: NDArray[np.floating], weights: NDArray[np.floating]
) -> Platt:
    """Slope and intercept of maximum likelihood, by Newton's method.

    If the slope would not be positive, it stays at 1 and only the intercept is fitted.

    Args:
        logits: [N].
        labels: [N], 0 or 1.
        weights: [N], how often each row counts.
    """
    inputs = np.stack([logits.astype(np.float64), np.ones(len(logits))], axis=1)
    both = _newton(inputs, labels, weights, np.array([1.0, 0.0]), [True, True])
    if both[0] <= 0:
        both = _newton(inputs, labels, weights, np.array([1.0, 0.0]), [False, True])
    return Platt(float(both[0]), float(both[1]))


def _newton(
    inputs: NDArray[np.float64],
    labels: NDArray[np.floating],
    counted: NDArray[np.floating],
    start: NDArray[np.float64],
    free: list[bool],
) -> NDArray[np.float64]:
    found = start.copy()
    for _ in range(STEPS):
        chance = Platt(found[0], found[1])(inputs[:, 0])
        gradient = inputs.T @ (counted * (chance - labels)) + TO_ITSELF * (found - start)
        bends = counted * chance * (1 - chance)
        curvature = (inputs * bends[:, None]).T @ inputs + TO_ITSELF * np.eye(2)
        step = np.zeros(2)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient[free])
        found -= step * min(1.0, 1.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < ENOUGH:
            break
    return found


def fit_isotonic(
    logits: NDArray[np.floating], labels: NDArray[np.floating], weights: NDArray[np.floating]
) -> Isotonic:
    """Increasing steps by least squares (scikit-learn's), kept away from 0 and 1 by half a row."""
    from sklearn.isotonic import IsotonicRegression

    off = 0.5 / len(labels)
    fitted = IsotonicRegression(y_min=off, y_max=1 - off).fit(logits, labels, weights)
    return Isotonic(
        np.asarray(fitted.X_thresholds_, np.float64).tolist(),
        np.asarray(fitted.y_thresholds_, np.float64).tolist(),
    )


Fit = Callable[[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]], Platt | Isotonic]
FITS: dict[Kind, Fit] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}


def _read(model_dir: Path, window: str) -> pl.DataFrame:
    return pl.read_parquet(model_dir / PREDICTIONS_DIR / f"{window}.parquet")


def _of(frame: pl.DataFrame, schema: Schema, domain: int, task: str) -> Predictions:
    """Logits, labels and weights [N] of a domain's rows with a known label."""
    label, logit = (schema.columns(base, [task])[0] for base in ("label", "logit"))
    own = frame.filter((pl.col("domain") == domain) & pl.col(label).is_not_nan())
    logits, labels = own[logit].to_numpy(), own[label].to_numpy()
    return logits, labels, own[WEIGHT].to_numpy() if WEIGHT in own.columns else np.ones_like(logits)


def _measured(
    one: CalibrationMap,
    logits: NDArray[np.float32],
    labels: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> dict[str, float]:
    made = _logits_of(one, logits)
    return {
        "ne": normalized_entropy(made, labels, weights),
        "calibration": calibration(made, labels, weights),
    }


def _losses(logits: NDArray[np.float64], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log loss of each row [N]."""
    return np.logaddexp(0.0, logits) - labels * logits


def _logits_of(one: CalibrationMap, logits: NDArray[np.floating]) -> NDArray[np.float64]:
    chance = one(logits).clip(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.log(chance / (1 - chance))
