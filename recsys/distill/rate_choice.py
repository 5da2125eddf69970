"""The learning rate of the teacher's embedding tables, by what early windows say."""

from dataclasses import dataclass
from typing import Any

from recsys.distill.early_choice import in_words, lowest_ne

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
        return (
            f"table learning rate {self.table_learning_rate:g} ({in_words(self.windows, self.ne)})"
        )


def lowest_rate(histories: dict[float, list[dict[str, Any]]]) -> RateChoice:
    """The rate of the lowest NE, see :func:`recsys.distill.early_choice.lowest_ne`."""
    found = lowest_ne(histories)
    return RateChoice(
        found.choice, found.windows, {f"{rate:g}": ne for rate, ne in found.ne.items()}
    )
