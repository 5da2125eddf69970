"""Hash collisions: how a categorical column's values share the rows of its table."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

ENCODING_FILE = "encoding.json"
SHARED_SHOWN = 0.15  # share of a column's values without a row of their own that is reported
EXACT_VALUES = 1 << 16  # counted exactly up to here, estimated above
RECENT, RECENT_SHIFTS = 1 << 16, (0, 20)
BITS = 1 << 21
KEPT_HASHES = 1 << 20
ROWS_PER_VALUE = 5  # for table_rows: auto; about one value in ten then shares its row
ROWS_PER_SQUARE, SMALL_TABLE = 10, 10_000  # for few values: 1 time in 20 any two share a row


class TableUse:
    """Counts the values of one column and the rows they use, chunk by chunk in bounded memory.

    Above 65,536 distinct values their number is estimated by linear counting (Whang et al. 1990;
    within 1 % up to some ten million).
    """

    def __init__(self, name: str, table_rows: int) -> None:
        self.name, self.table_rows = name, table_rows
        self._taken = np.zeros(table_rows, dtype=bool)
        self._values: NDArray[np.uint64] | None = np.zeros(0, dtype=np.uint64)
        # Skip most values that were seen already
        self._recent = [np.zeros(RECENT, dtype=np.uint64) for _ in RECENT_SHIFTS]
        self._seen = np.zeros(0, dtype=bool)

    def add(self, hashed: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Count values, given their hashes [N] and their rows [N]; both are 0 for a missing
        value."""
        self._taken[rows] = True
        if self._values is not None:
            new = hashed
            for recent, shift in zip(self._recent, RECENT_SHIFTS, strict=True):
                new = new[recent[_bits(new, shift)] != new]
            if len(new) == 0:
                return
            self._values = pl.Series(np.concatenate([self._values, new])).unique().to_numpy()
            for recent, shift in zip(self._recent, RECENT_SHIFTS, strict=True):
                recent[_bits(new, shift)] = new
            if len(self._values) <= EXACT_VALUES:
                return
            hashed, self._values = self._values, None
            self._recent, self._seen = [], np.zeros(BITS, dtype=bool)
        # The low bits: the high ones decide the row
        self._seen[(hashed & np.uint64(BITS - 1)).view(np.int64)] = True

    @property
    def distinct(self) -> int:
        """The number of distinct values so far, without the missing one."""
        if self._values is not None:
            return int(np.count_nonzero(self._values))
        free = max(BITS - int(self._seen.sum()), 1)
        return round(-BITS * math.log(free / BITS))

    def summary(self) -> dict[str, int | bool]:
        """For the report. ``found`` and ``expected`` count the values without a row of their own,
        where one value per row is its owner."""
        distinct, own_rows = self.distinct, self.table_rows - 1
        filled = own_rows * -math.expm1(distinct * math.log1p(-1 / own_rows)) if own_rows > 1 else 1
        return {
            "distinct_values": distinct,
            "distinct_is_exact": self._values is not None,
            "table_rows": self.table_rows,
            "rows_used": int(self._taken[1:].sum()),
            "expected_collisions": max(round(distinct - filled), 0),
            "found_collisions": max(distinct - int(self._taken[1:].sum()), 0),
        }


def _bits(hashed: NDArray[np.uint64], shift: int) -> NDArray[np.int64]:
    return ((hashed >> np.uint64(shift)) & np.uint64(RECENT - 1)).view(np.int64)


class DistinctValues:
    """Counts distinct values from their hashes: exactly up to 2^20, then estimated from the
    smallest 2^20 hashes (Bar-Yossef et al. 2002; within 0.3 %).

    Order and repetition do not change the result.
    """

    def __init__(self, kept: int = KEPT_HASHES) -> None:
        self._kept = kept
        self._smallest = np.zeros(0, dtype=np.uint64)
        self._full = False

    def add(self, hashed: NDArray[np.uint64]) -> None:
        """Count values by their hashes [N], spread evenly over 64 bits."""
        if self._full:
            hashed = hashed[hashed < self._smallest[-1]]
        if len(hashed):
            both = np.unique(np.concatenate([self._smallest, hashed]))
            self._full = len(both) >= self._kept
            self._smallest = both[: self._kept]

    def take(self, other: "DistinctValues") -> None:
        """Count what ``other``, which keeps as many, has counted."""
        self.add(other._smallest)

    @property
    def count(self) -> int:
        """Distinct values so far."""
        if not self._full:
            return len(self._smallest)
        return round((self._kept - 1) * 2.0**64 / float(self._smallest[-1]))


def crowded(uses: Sequence[TableUse]) -> list[str]:
    """A line for each column in which more than 15 % of the values have no row of their own."""
    lines = []
    for use in uses:
        found = use.summary()
        distinct, shared = found["distinct_values"], found["found_collisions"]
        if shared > SHARED_SHOWN * distinct:
            line = (
                f"column {use.name!r}: {distinct:,} values in {use.table_rows:,} table_rows have "
                f"{found['rows_used']:,} ids, so {shared:,} share one (expected "
                f"{found['expected_collisions']:,})"
            )
            better = auto_rows(distinct)
            hint = f"; take table_rows: auto ({better:,})" if better > use.table_rows else ""
            lines.append(line + hint)
    return lines


def auto_rows(distinct: int) -> int:
    """``table_rows`` for this number of distinct values."""
    return 2 + max(ROWS_PER_VALUE * distinct, min(ROWS_PER_SQUARE * distinct**2, SMALL_TABLE))


def write_uses(uses: Sequence[TableUse], windows_dir: Path) -> None:
    """Write encoding.json: the use of each column's table, by its name."""
    found = {use.name: use.summary() for use in uses}
    (windows_dir / ENCODING_FILE).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
