"""How often each id was shown and clicked, as known at a given time."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray


class PastStatistics:
    """Counts and smoothed click rates of the ids in ``columns`` over the examples added so far.

    Args:
        smoothing: examples at the mean rate that each id starts with.
        rate: the mean rate before there are examples.
    """

    def __init__(self, columns: Sequence[str], smoothing: float, rate: float) -> None:
        self._smoothing, self._rate = smoothing, rate
        empty = pl.DataFrame(schema={"id": pl.Int64, "rows": pl.Float64, "clicks": pl.Float64})
        self._counts = dict.fromkeys(columns, empty)
        self._rows = self._clicks = 0.0

    def add(self, known: pl.DataFrame) -> None:
        """Count examples whose ``label`` has become known."""
        label = pl.col("label").cast(pl.Float64)
        for name, counts in self._counts.items():
            new = known.select(id=pl.col(name).cast(pl.Int64), rows=pl.lit(1.0), clicks=label)
            self._counts[name] = pl.concat([counts, new]).group_by("id").sum()
        self._rows += known.height
        self._clicks += known.select(label.sum()).item()

    def of(self, examples: pl.DataFrame) -> NDArray[np.float32]:
        """Features of B examples, [B, 2 * columns]: each column's count and rate, side by side.

        The rate is (clicks + smoothing * mean) / (rows + smoothing); an unseen id has the mean of
        all examples.
        """
        mean = self._clicks / self._rows if self._rows else self._rate
        found = np.empty((examples.height, 2 * len(self._counts)), dtype=np.float32)
        for place, (name, counts) in enumerate(self._counts.items()):
            ids = examples.select(id=pl.col(name).cast(pl.Int64))
            own = ids.join(counts, on="id", how="left", maintain_order="left").fill_null(0.0)
            rows, clicks = own["rows"].to_numpy(), own["clicks"].to_numpy()
            found[:, 2 * place] = rows
            found[:, 2 * place + 1] = (clicks + self._smoothing * mean) / (rows + self._smoothing)
        return found
