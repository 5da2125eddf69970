"""What early windows say of several ways to train: the one with the lowest NE is taken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Lowest(Generic[C]):
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


def lowest_ne(histories: Mapping[C, list[dict[str, Any]]]) -> Lowest[C]:
    """The choice of the lowest NE.

    Args:
        histories: the metrics of each window by choice, as
            :func:`recsys.validation.progressive.predict_then_train` returns them. The first window
            is left out: nothing was trained before it.
    """
    nes = {choice: _mean_ne(history[1:]) for choice, history in histories.items()}
    best = min(nes.items(), key=lambda one: math.inf if one[1] is None else one[1])[0]
    return Lowest(best, [row["window"] for row in next(iter(histories.values()))[1:]], nes)


def in_words(windows: Sequence[str], nes: Mapping[Any, float | None]) -> str:
    """The windows, and the mean NE of each choice."""
    shown = ", ".join(
        f"{choice} {'-' if ne is None else f'{ne:.4f}'}" for choice, ne in nes.items()
    )
    return f"NE of {windows[0]} to {windows[-1]}: {shown}"


def _mean_ne(history: list[dict[str, Any]]) -> float | None:
    known = [(row["ne"], row["rows"]) for row in history if math.isfinite(row.get("ne", math.nan))]
    rows = sum(count for _, count in known)
    return sum(ne * count for ne, count in known) / rows if rows else None
