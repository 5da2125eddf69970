"""Choose between several ways to train: the lowest NE on early windows wins."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class EarlyChoice(Generic[C]):
    """The choice of the lowest NE.

    Attributes:
        choice: the winner; the first one in a tie.
        windows: names of the windows that decided.
        ne: the mean NE over these windows by choice, weighted by rows; None if no window defines
            it.
    """

    choice: C
    windows: list[str]
    ne: dict[C, float | None]

    def __str__(self) -> str:
        shown = ", ".join(
            f"{_named(choice)} {'-' if ne is None else f'{ne:.4f}'}"
            for choice, ne in self.ne.items()
        )
        return f"{_named(self.choice)} (NE of {self.windows[0]} to {self.windows[-1]}: {shown})"

    def as_json(self) -> dict[str, Any]:
        """The choice and the numbers behind it, for JSON."""
        return {
            "windows": self.windows,
            "ne": {_named(choice): ne for choice, ne in self.ne.items()},
        }


def lowest_ne(histories: Mapping[C, list[dict[str, Any]]]) -> EarlyChoice[C]:
    """The choice of the lowest NE.

    Args:
        histories: per choice, the metrics of each window from
            :func:`recsys.validation.progressive.predict_then_train`. The first window is ignored:
            nothing was trained before it.
    """
    nes = {choice: _mean_ne(history[1:]) for choice, history in histories.items()}
    best = min(nes.items(), key=lambda one: math.inf if one[1] is None else one[1])[0]
    return EarlyChoice(best, [row["window"] for row in next(iter(histories.values()))[1:]], nes)


def ne_by_other_windows(histories: Mapping[C, list[dict[str, Any]]]) -> list[float]:
    """An honest NE of choosing by :func:`lowest_ne`: for each window after the first, the NE of
    what the other windows choose; NaN where undefined."""
    found = []
    for window in range(1, len(next(iter(histories.values())))):
        others = {one: rows[:window] + rows[window + 1 :] for one, rows in histories.items()}
        found.append(float(histories[lowest_ne(others).choice][window].get("ne", math.nan)))
    return found


def _named(choice: object) -> str:
    return f"{choice:g}" if isinstance(choice, float) else str(choice)


def _mean_ne(history: list[dict[str, Any]]) -> float | None:
    known = [(row["ne"], row["rows"]) for row in history if math.isfinite(row.get("ne", math.nan))]
    rows = sum(count for _, count in known)
    return sum(ne * count for ne, count in known) / rows if rows else None
