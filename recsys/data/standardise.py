"""Standardise dense features by their past: subtract its mean, divide by its deviation, clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Moments:
    """Per dense feature in one window: the number of known values, their mean and their
    variance."""

    count: list[int]
    mean: list[float]
    variance: list[float]

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> "Moments":
        """The moments of ``values`` [N, D]; NaN is a missing value."""
        count: list[int] = []
        means: list[float] = []
        variances: list[float] = []
        for column in values.T:
            known = column[~np.isnan(column)].astype(np.float64)
            mean = _sum(known) / max(len(known), 1)
            count.append(len(known))
            means.append(mean)
            variances.append(_sum((known - mean) ** 2) / max(len(known), 1))
        return cls(count, means, variances)

    def plus(self, other: "Moments", weight: float = 1.0) -> "Moments":
        """The moments of both together, with each value of ``self`` counted ``weight`` times."""
        own = weight * np.array(self.count, dtype=np.float64)
        more = np.array(other.count, dtype=np.float64)
        total = np.maximum(own + more, 1e-300)
        apart = np.array(other.mean) - np.array(self.mean)
        mean = np.array(self.mean) + apart * more / total
        squares = own * np.array(self.variance) + more * np.array(other.variance)
        variance = (squares + apart**2 * own * more / total) / total
        return Moments((own + more).tolist(), mean.tolist(), variance.tolist())


def _sum(values: NDArray[np.float64]) -> float:
    """A sequential sum, which does not depend on how numpy splits a sum."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


@dataclass(frozen=True)
class Standard:
    """A standardisation of dense features: (value - mean) / deviation, limited to ``clip``."""

    mean: list[float]
    deviation: list[float]
    clip: float

    def apply(self, frame: pl.DataFrame, dense: Sequence[str]) -> pl.DataFrame:
        """``frame`` with its columns ``dense`` standardised, float32; missing ones stay missing."""
        return frame.with_columns(
            ((pl.col(name).cast(pl.Float64) - mean) / deviation)
            .clip(-self.clip, self.clip)
            .cast(pl.Float32)
            for name, mean, deviation in zip(dense, self.mean, self.deviation, strict=True)
        )


def standards(windows: Sequence[Moments], half_life_windows: float, clip: float) -> list[Standard]:
    """The standardisation for each of ``windows``, and then the one after the last.

    Only earlier windows count, each half as much as the one ``half_life_windows`` later. The first
    window is standardised by itself, just as models start at its base rate; no result is judged on
    it.
    """
    found: list[Standard] = []
    past: Moments | None = None
    keep = 0.5 ** (1.0 / half_life_windows)
    for own in windows:
        found.append(_standard(own if past is None else past, clip))
        past = own if past is None else past.plus(own, keep)
    return [*found, _standard(past, clip)] if past is not None else []


def _standard(moments: Moments, clip: float) -> Standard:
    deviation = np.sqrt(np.array(moments.variance))
    # A constant feature carries no information: it stays at 0 until it changes.
    usable = np.where(deviation > SMALLEST_DEVIATION, deviation, 1.0)
    return Standard(list(moments.mean), usable.tolist(), clip)
