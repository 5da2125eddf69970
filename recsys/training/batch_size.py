"""Choose the number of examples per step from the number of rows."""

import math
from typing import Annotated, Literal

from pydantic import Field

BatchSize = Annotated[int, Field(gt=0)] | Literal["auto"]
AUTO_BATCH: Literal["auto"] = "auto"
STEPS_PER_WINDOW = 64  # docs/rankers.md has the measurements
SMALLEST_AUTO = 64


def fitting_batch(window_rows: int, largest: int) -> int:
    """The power of two that gives about 64 steps in a window of ``window_rows``, between 64 and
    ``largest``. With few rows and large batches, a model would hardly have moved before the next
    window.
    """
    nearest = 2 ** round(math.log2(max(window_rows / STEPS_PER_WINDOW, 1)))
    return min(max(nearest, SMALLEST_AUTO), largest)
