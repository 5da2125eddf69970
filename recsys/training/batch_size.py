"""How many examples a step takes, by how many there are."""

import math
from typing import Annotated, Literal

from pydantic import Field

from recsys.training.settings import TrainSettings

BatchSize = Annotated[int, Field(gt=0)] | Literal["auto"]
AUTO_BATCH: Literal["auto"] = "auto"
STEPS_PER_WINDOW = 64  # docs/rankers.md has what was measured
SMALLEST_AUTO = 64


def with_batch_size(train: TrainSettings, choice: BatchSize, window_rows: int) -> TrainSettings:
    """``train`` with the batch size of one model.

    ``auto`` is the power of two that gives about 64 steps per window: few rows need small steps,
    or a model has hardly moved when the next window comes. It is at least 64, and at most
    ``train.global_batch_size``.

    Args:
        window_rows: that the model trains on in the first window, all that may be known before it.
    """
    size = choice
    if size == AUTO_BATCH:
        nearest = 2 ** round(math.log2(max(window_rows / STEPS_PER_WINDOW, 1)))
        size = min(max(nearest, SMALLEST_AUTO), train.global_batch_size)
    return train.model_copy(update={"global_batch_size": size})
