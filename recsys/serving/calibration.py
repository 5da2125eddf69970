"""Calibration at serving: a monotone map from a logit to a probability, per domain and task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


class CalibrationMap(Protocol):
    """A non-decreasing map from logits [N] to probabilities [N]."""

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """[N] -> [N]."""
        ...


@dataclass(frozen=True)
class Platt:
    """The sigmoid of ``slope`` * logit + ``intercept``; the slope is positive (Platt 1999)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """[N] -> [N]."""
        return sigmoid(self.slope * logits.astype(np.float64) + self.intercept)

    def at_negative_rate(self, rate: float) -> "Platt":
        """The map for all rows, if this one is for a log that has kept the share ``rate`` of the
        rows with label 0, in which odds are 1 / ``rate`` times the true ones."""
        return Platt(self.slope, self.intercept + math.log(rate))


@dataclass(frozen=True)
class Isotonic:
    """Linear between the points (``logits``, ``probabilities``), both increasing; constant
    beyond."""

    logits: list[float]
    probabilities: list[float]

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """[N] -> [N]."""
        return np.interp(logits.astype(np.float64), self.logits, self.probabilities)

    def at_negative_rate(self, rate: float) -> "Isotonic":
        """As :meth:`Platt.at_negative_rate`, applied to the points."""
        here = self.probabilities
        return Isotonic(self.logits, [rate * one / (rate * one + 1 - one) for one in here])


def sigmoid(values: Floats) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(values.astype(np.float64)))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


UNCALIBRATED = Platt()


def map_of(values: Mapping[str, Any]) -> CalibrationMap:
    """The map described by an entry of calibration.json: its fields and its ``kind``."""
    kinds = {"platt": Platt, "isotonic": Isotonic}
    fields = dict(values)
    return kinds[fields.pop("kind")](**fields)
