"""Which rows a student learns from, by what early windows say: the lowest NE of the choices."""

from dataclasses import dataclass
from typing import Any

from recsys.data.rows import Rows
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.early_choice import in_words, lowest_ne

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
        return f"rows {self.rows} ({in_words(self.windows, self.ne)})"


def candidates(settings: DistillationSettings) -> list[Rows]:
    """The choices, the simplest first."""
    return ["own", "scores_elsewhere", "all"] if settings.reads_scores else ["own", "all"]


def lowest(histories: dict[Rows, list[dict[str, Any]]]) -> RowChoice:
    """The rows of the lowest NE, see :func:`recsys.distill.early_choice.lowest_ne`."""
    found = lowest_ne(histories)
    return RowChoice(found.choice, found.windows, found.ne)
