"""Which rows a student learns from and at what rate its tables learn, by what early windows say."""

from dataclasses import asdict, dataclass
from typing import Any

from recsys.data.rows import Rows
from recsys.distill.early_choice import in_words, lowest_ne

CHOICES_FILE = "chosen.json"


@dataclass(frozen=True)
class Recipe:
    """What may be chosen of one student's arm.

    Attributes:
        rows: that it learns from.
        table_learning_rate: of its embedding tables; None: that of all training.
    """

    rows: Rows
    table_learning_rate: float | None

    def __str__(self) -> str:
        rate = self.table_learning_rate
        return self.rows if rate is None else f"{self.rows} at {rate:g}"


@dataclass(frozen=True)
class RecipeChoice:
    """What was chosen.

    Attributes:
        recipe: the choice.
        windows: names of the windows that were predicted for it.
        ne: the mean NE over them by recipe, in words, each window weighted by its rows; None where
            no window defines it.
    """

    recipe: Recipe
    windows: list[str]
    ne: dict[str, float | None]

    def __str__(self) -> str:
        return f"{self.recipe} ({in_words(self.windows, self.ne)})"

    def as_json(self) -> dict[str, Any]:
        """What chosen.json holds of an arm."""
        return {**asdict(self.recipe), "windows": self.windows, "ne": self.ne}


def lowest(histories: dict[Recipe, list[dict[str, Any]]]) -> RecipeChoice:
    """The recipe of the lowest NE, see :func:`recsys.distill.early_choice.lowest_ne`."""
    found = lowest_ne(histories)
    return RecipeChoice(found.choice, found.windows, {str(one): ne for one, ne in found.ne.items()})
