"""Which rows a student learns from, by what early windows say: the lowest NE of the choices."""

import math
from dataclasses import dataclass
from typing import Any

from recsys.data.rows import Rows
from recsys.distill.distillation_settings import DistillationSettings
from recsys.validation.progressive import mean_ne

ROWS_FILE = "rows.json"


@dataclass(frozen=True)
class RowChoice:
    """What was chosen.

    Attributes:
        rows: the choice.
        windows: names of the windows that were predicted for it.
        ne: the mean NE over them by choice, each window weighted by its rows; None where no window
            defines it.
    """

    rows: Rows
    windows: list[str]
    ne: dict[Rows, float | None]

    def __str__(self) -> str:
        nes = ", ".join(
            f"{rows} {'-' if ne is None else f'{ne:.4f}'}" for rows, ne in self.ne.items()
        )
        return f"rows {self.rows} (NE of {self.windows[0]} to {self.windows[-1]}: {nes})"


def candidates(settings: DistillationSettings) -> list[Rows]:
    """The choices, the simplest first."""
    return ["own", "scores_elsewhere", "all"] if settings.reads_scores else ["own", "all"]


def lowest(histories: dict[Rows, list[dict[str, Any]]]) -> RowChoice:
    """The choice of the lowest NE, the first of those that tie.

    Args:
        histories: the metrics of each window by choice, as
            :func:`recsys.validation.progressive.predict_then_train` returns them. The first window
            is left out: nothing was learnt before it.
    """
    nes: dict[Rows, float | None] = {
        rows: mean_ne(history[1:]) for rows, history in histories.items()
    }
    best = min(nes.items(), key=lambda one: math.inf if one[1] is None else one[1])[0]
    return RowChoice(best, [row["window"] for row in next(iter(histories.values()))[1:]], nes)
