"""A column's vocabulary: values that were frequent enough in the past have their own row.

Row 0 is for missing values, row 1 for all others. A row's value never changes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 1
FIRST_ROW = 2


@dataclass(frozen=True)
class Step:
    """Values that got rows at the same time, in the order of their rows.

    ``known_from`` is the first window whose rows are encoded with them; None: rows after the last
    window.
    """

    known_from: str | None
    values: list[str]


@dataclass(frozen=True)
class Vocabulary:
    """Values by the window from which they are known."""

    steps: list[Step] = field(default_factory=list)

    @cached_property
    def _rows(self) -> dict[str, int]:
        values = (value for step in self.steps for value in step.values)
        return {value: FIRST_ROW + place for place, value in enumerate(values)}

    def rows_of(self, texts: Sequence[str], window: str | None = None) -> NDArray[np.int64]:
        """Table rows [N] int64 of canonical ``texts``, as known in ``window``; None: after the last
        one."""
        end = FIRST_ROW + sum(
            len(step.values)
            for step in self.steps
            if window is None or (step.known_from is not None and step.known_from <= window)
        )
        rows = np.fromiter(
            (self._rows.get(text, UNKNOWN) for text in texts), dtype=np.int64, count=len(texts)
        )
        return np.where(rows < end, rows, UNKNOWN)


class VocabularyGrowth:
    """Builds a vocabulary window by window.

    A value gets a row once it has occurred ``min_count`` times in earlier windows; values that get
    rows together are ordered by count, then by text. Keeps the count of every value without a row,
    and no counts once all ``table_rows`` are used.
    """

    def __init__(self, table_rows: int, min_count: int) -> None:
        self.vocabulary = Vocabulary()
        self._free, self._min_count = max(table_rows - FIRST_ROW, 0), min_count
        self._known: set[str] = set()
        self._counts: Counter[str] = Counter()

    def count(self, met: Mapping[str, int]) -> None:
        """Add the number of occurrences of each canonical text."""
        if self._free:
            self._counts.update({text: n for text, n in met.items() if text not in self._known})

    def grow(self, known_from: str | None) -> None:
        """Give rows to the values that are frequent by now; they are known from the window
        ``known_from`` on."""
        passed = [(-n, text) for text, n in self._counts.items() if n >= self._min_count]
        values = [text for _, text in sorted(passed)[: self._free]]
        if not values:
            return
        self._free -= len(values)
        self._known.update(values)
        if self._free:
            for text in values:
                del self._counts[text]
        else:
            self._counts.clear()
        self.vocabulary = Vocabulary([*self.vocabulary.steps, Step(known_from, values)])
