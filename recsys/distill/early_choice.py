"""What early windows say of several ways to train: the one with the lowest NE is taken."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class EarlyChoice(Generic[C]):
    """The choice of the lowest NE.

    Attributes:
        choice: the first of those that tie.
        windows: names of the windows that were predicted for it.
        ne: the mean NE over them by choice, each window weighted by its rows; None where no window
            defines it.
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
        """What it was chosen by."""
        return {
            "windows": self.windows,
            "ne": {_named(choice): ne for choice, ne in self.ne.items()},
        }


def lowest_ne(histories: Mapping[C, list[dict[str, Any]]]) -> EarlyChoice[C]:
    """The choice of the lowest NE.

    Args:
        histories: the metrics of each window by choice, as
            :func:`recsys.validation.progressive.predict_then_train` returns them. The first window
            is left out: nothing was trained before it.
    """
    nes = {choice: _mean_ne(history[1:]) for choice, history in histories.items()}
    best = min(nes.items(), key=lambda one: math.inf if one[1] is None else one[1])[0]
    return EarlyChoice(best, [row["window"] for row in next(iter(histories.values()))[1:]], nes)


def ne_by_other_windows(histories: Mapping[C, list[dict[str, Any]]]) -> list[float]:
    """What choosing by :func:`lowest_ne` is worth: NE of each window after the first, of what the
    windows beside it choose; NaN where it is not defined."""
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
