"""The learning rate of the teacher's embedding tables, by what early windows say."""

import math
from dataclasses import dataclass
from typing import Any

from recsys.validation.progressive import mean_ne

RATE_FILE = "rate.json"


@dataclass(frozen=True)
class RateChoice:
    """What was chosen.

    Attributes:
        table_learning_rate: the choice.
        windows: names of the windows that were predicted for it.
        ne: the mean NE over them by rate, each window weighted by its rows; None where no window
            defines it.
    """

    table_learning_rate: float
    windows: list[str]
    ne: dict[str, float | None]

    def __str__(self) -> str:
        nes = ", ".join(
            f"{rate} {'-' if ne is None else f'{ne:.4f}'}" for rate, ne in self.ne.items()
        )
        return (
            f"table learning rate {self.table_learning_rate:g} (NE of {self.windows[0]} to "
            f"{self.windows[-1]}: {nes})"
        )


def lowest_rate(histories: dict[float, list[dict[str, Any]]]) -> RateChoice:
    """The rate of the lowest NE, the first of those that tie.

    Args:
        histories: the metrics of each window by rate, as
            :func:`recsys.validation.progressive.predict_then_train` returns them. The first window
            is left out: nothing was learnt before it.
    """
    nes = {rate: mean_ne(history[1:]) for rate, history in histories.items()}
    best = min(nes.items(), key=lambda one: math.inf if one[1] is None else one[1])[0]
    windows = [row["window"] for row in next(iter(histories.values()))[1:]]
    return RateChoice(best, windows, {f"{rate:g}": ne for rate, ne in nes.items()})
