"""How many examples a step takes, by how many there are."""

import math
from typing import Annotated, Literal

from pydantic import Field

BatchSize = Annotated[int, Field(gt=0)] | Literal["auto"]
AUTO_BATCH: Literal["auto"] = "auto"
STEPS_PER_WINDOW = 64  # docs/rankers.md has what was measured
SMALLEST_AUTO = 64


def fitting_batch(window_rows: int, largest: int) -> int:
    """The power of two that gives about 64 steps in a window of ``window_rows``: few rows need
    small steps, or a model has hardly moved when the next window comes. At least 64, and at most
    ``largest``.
    """
    nearest = 2 ** round(math.log2(max(window_rows / STEPS_PER_WINDOW, 1)))
    return min(max(nearest, SMALLEST_AUTO), largest)
