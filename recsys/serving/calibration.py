"""Calibration at serving: a monotone map from a logit to a probability, per domain and task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


class CalibrationMap(Protocol):
    """Logits [N] to probabilities [N], never falling."""

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """[N] -> [N]."""
        ...


@dataclass(frozen=True)
class Platt:
    """The probability of ``slope`` * logit + ``intercept``; the slope is positive (Platt 1999)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """[N] -> [N]."""
        return sigmoid(self.slope * logits.astype(np.float64) + self.intercept)

    def at_negative_rate(self, rate: float) -> "Platt":
        """The probability over all rows, where this one is over a log that has kept the share
        ``rate`` of the rows with label 0: its odds are 1 / ``rate`` of the true ones."""
        return Platt(self.slope, self.intercept + math.log(rate))


@dataclass(frozen=True)
class Isotonic:
    """Linear between the points (``logits``, ``probabilities``), both rising; level beyond."""

    logits: list[float]
    probabilities: list[float]

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """[N] -> [N]."""
        return np.interp(logits.astype(np.float64), self.logits, self.probabilities)

    def at_negative_rate(self, rate: float) -> "Isotonic":
        """As :meth:`Platt.at_negative_rate`, at the points."""
        here = self.probabilities
        return Isotonic(self.logits, [rate * one / (rate * one + 1 - one) for one in here])


def sigmoid(values: Floats) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(values.astype(np.float64)))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


UNCALIBRATED = Platt()


def map_of(values: Mapping[str, Any]) -> CalibrationMap:
    """The map that calibration.json describes: its fields and its ``kind``."""
    kinds = {"platt": Platt, "isotonic": Isotonic}
    fields = dict(values)
    return kinds[fields.pop("kind")](**fields)
