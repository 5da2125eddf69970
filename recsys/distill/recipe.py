"""What early windows may choose of one student's arm."""

from dataclasses import dataclass

from recsys.data.rows import Rows

CHOICES_FILE = "chosen.json"


@dataclass(frozen=True)
class Recipe:
    """How a student learns, as far as ``auto`` leaves it open.

    Attributes:
        rows: that it learns from.
        table_learning_rate: of its embedding tables; None: that of all training.
    """

    rows: Rows
    table_learning_rate: float | None

    def __str__(self) -> str:
        rate = self.table_learning_rate
        return self.rows if rate is None else f"{self.rows} at {rate:g}"
