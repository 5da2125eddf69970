"""Whether two results are the same."""

import math
from typing import Any

from torch import Tensor


def same(left: Any, right: Any) -> bool:
    """Whether two results hold the same bits; NaN equals NaN."""
    if isinstance(left, Tensor):
        return left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            same(value, right[key]) for key, value in left.items()
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (math.isnan(left) and math.isnan(right))
