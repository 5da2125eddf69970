"""Drift: how windows differ from earlier ones, what manifests record of it, and when ingest
stops."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.names import feature_name
from recsys.data.schema import CategoricalFeature
from recsys.data.settings import DriftSettings
from recsys.data.vocabulary import UNKNOWN

SKETCH = 1 << 18  # slots of a linear counter (Whang et al. 1990)
BEYOND_CHANCE = 4.0  # standard errors by which a share must differ to be reported
NOTED_FACTOR, NOTED_MISSING, NOTED_GROWTH, NOTED_UNKNOWN = 2.0, 0.5, 10.0, 0.5


@dataclass
class WindowCounts:
    """Counts over the rows of a window, some of them per feature column."""

    dense: Sequence[str]
    categorical: Sequence[CategoricalFeature]
    vocabularies: Sequence[str]
    rows: int = 0
    clicks: float = 0.0
    missing: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)  # ids that are not missing
    _met: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def add(self, frame: pl.DataFrame) -> None:
        """Count the rows of a part."""
        self.rows += frame.height
        self.clicks += float(frame["label"].cast(pl.Float64).sum())
        for name in self.dense:
            self.missing[name] = self.missing.get(name, 0) + frame[name].null_count()
        for one in self.categorical:
            column = frame[one.name]
            if one.kind == "list":
                absent = int((column.list.len().fill_null(0) == 0).sum())
                ids = column.filter(column.list.len() > 0).explode().to_numpy()
            else:
                ids = column.to_numpy()
                absent = int(np.count_nonzero(ids == 0))
            present = ids[ids != 0]
            self.missing[one.name] = self.missing.get(one.name, 0) + absent
            self.ids[one.name] = self.ids.get(one.name, 0) + len(present)
            if one.name in self.vocabularies:
                found = int(np.count_nonzero(present == UNKNOWN))
                self.unknown[one.name] = self.unknown.get(one.name, 0) + found
            if one.name not in self._met:
                self._met[one.name] = np.zeros(SKETCH, dtype=bool)
            self._met[one.name][present & (SKETCH - 1)] = True

    def summary(self) -> dict[str, Any]:
        """For the manifest: ``base_rate``, and per feature the share ``missing``, the share
        ``unknown`` for vocabularies, and the number of ``distinct`` ids (estimated above some ten
        thousand)."""
        return {
            "base_rate": self.clicks / self.rows,
            "missing": {name: count / self.rows for name, count in self.missing.items()},
            "unknown": {
                name: count / max(self.ids[name], 1) for name, count in self.unknown.items()
            },
            "distinct": {name: _distinct(met) for name, met in self._met.items()},
        }


def _distinct(met: NDArray[np.bool_]) -> int:
    free = max(SKETCH - int(np.count_nonzero(met)), 1)
    return round(-SKETCH * math.log(free / SKETCH))


@dataclass
class Drift:
    """Compares each window's counts with the mean of earlier windows."""

    settings: DriftSettings
    notes: list[str] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)
    _clicks: float = 0.0
    _missing: dict[str, int] = field(default_factory=dict)
    _distinct: dict[str, list[int]] = field(default_factory=dict)
    _unknown: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def check(self, window: str, counts: WindowCounts) -> dict[str, Any]:
        """Return the window's summary and add it to the earlier windows.

        Adds to ``notes`` what the user should know.

        Raises:
            InputError: a bound is exceeded; the message names it, the window and both values.
        """
        found = counts.summary()
        for key, value, noted, message in self._differences(counts, found):
            bound = getattr(self.settings, key)
            text = f"window {window}: {message}"
            if bound is not None and value > bound:
                raise InputError(f"{text}; {self.settings.where(key)} allows {bound:g}")
            if value > noted:
                self.notes.append(text)
        self._rows.append(counts.rows)
        self._clicks += counts.clicks
        for name, count in counts.missing.items():
            self._missing[name] = self._missing.get(name, 0) + count
        for name, count in found["distinct"].items():
            self._distinct.setdefault(name, []).append(count)
        for name, share in found["unknown"].items():
            self._unknown.setdefault(name, []).append((window, share))
        return found

    def unknown_lines(self) -> list[str]:
        """A line per vocabulary: the share of values that it did not contain."""
        lines = []
        for name, shares in self._unknown.items():
            later = shares[1:] or shares  # the first window is encoded with its own vocabulary
            highest = max(later, key=lambda pair: pair[1])
            mean = sum(share for _, share in later) / len(later)
            lines.append(
                f"vocabulary of {feature_name(name)!r}: {mean:.1%} of the values in a window are "
                f"not in it, at most {highest[1]:.1%} ({highest[0]})"
            )
        return lines

    def _differences(
        self, counts: WindowCounts, found: Mapping[str, Any]
    ) -> list[tuple[str, float, float, str]]:
        """For each difference: its settings key, its size, the size from which it is noted, and a
        description."""
        rows = sum(self._rows)
        if not rows:
            return []  # nothing to compare with; the first vocabulary is the window's own
        differences = [
            (
                "unknown",
                share,
                NOTED_UNKNOWN,
                f"{share:.1%} of {feature_name(name)!r} are not in its vocabulary",
            )
            for name, share in found["unknown"].items()
        ]
        now, before = found["base_rate"], self._clicks / rows
        if _beyond_chance(now, counts.rows, before, rows):
            low, high = sorted((now, before))
            factor = high / low if low > 0 else math.inf
            text = f"base rate {now:.4g}, in earlier windows {before:.4g}"
            differences.append(("base_rate", factor, NOTED_FACTOR, text))
        for name, share in found["missing"].items():
            before = self._missing.get(name, 0) / rows
            if _beyond_chance(share, counts.rows, before, rows):
                shown = f"{share:.1%} of {feature_name(name)!r} are missing"
                text = f"{shown}, in earlier windows {before:.1%}"
                differences.append(("missing", abs(share - before), NOTED_MISSING, text))
        more_rows = max(counts.rows * len(self._rows) / rows, 1.0)
        for name, distinct in found["distinct"].items():
            known = self._distinct[name]
            mean = max(sum(known) / len(known), 1.0)
            shown = f"{feature_name(name)!r} has {distinct:,} distinct ids"
            text = f"{shown}, in each earlier window {mean:,.0f}"
            growth = distinct / mean / more_rows
            differences.append(("distinct", growth, NOTED_GROWTH, text))
        return differences


def _beyond_chance(now: float, rows: int, before: float, rows_before: int) -> bool:
    """Whether two shares differ by more than chance explains."""
    both = (now * rows + before * rows_before) / (rows + rows_before)
    error = math.sqrt(both * (1 - both) * (1 / rows + 1 / rows_before))
    return abs(now - before) > BEYOND_CHANCE * error
