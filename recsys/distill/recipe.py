"""The settings of a student's arm that early windows may choose."""

from dataclasses import dataclass

from recsys.data.rows import Rows

CHOICES_FILE = "chosen.json"


@dataclass(frozen=True)
class Recipe:
    """The part of a student's settings that ``auto`` leaves open.

    Attributes:
        rows: the rows that it trains on.
        table_learning_rate: learning rate of its embedding tables; None: the one in the training
            settings.
    """

    rows: Rows
    table_learning_rate: float | None

    def __str__(self) -> str:
        rate = self.table_learning_rate
        return self.rows if rate is None else f"{self.rows} at {rate:g}"
