"""Column slices of large tables, which can be in different towers (DMT, arXiv 2403.00877, section
3.3).

A slice is a table with the feature's rows and some of its columns. In a partition, ``user:1of2`` is
the first half of the columns of ``user``. A tower sees it as a feature whose other columns are 0.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from recsys.config import InputError

NAME = re.compile(r"(?P<feature>.+):(?P<number>[1-9]\d*)of(?P<count>[1-9]\d*)")
COLUMN_MULTIPLE = 4  # FBGEMM's rows are multiples of 4 floats


@dataclass(frozen=True)
class Piece:
    """Part ``number`` of ``count`` equal parts of a feature's embedding columns; 1 of 1 is the
    whole embedding."""

    feature: str
    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, name: str) -> "Piece":
        """The piece called ``name``; a name without a slice means the whole feature."""
        found = NAME.fullmatch(name)
        return (
            cls(found["feature"], int(found["number"]), int(found["count"])) if found else cls(name)
        )

    @property
    def name(self) -> str:
        """The name in a partition."""
        return self.feature if self.count == 1 else f"{self.feature}:{self.number}of{self.count}"

    def columns(self, dimension: int) -> range:
        """Its columns among the feature's ``dimension`` columns.

        Raises:
            InputError: the columns cannot be cut this way.
        """
        if dimension % (self.count * COLUMN_MULTIPLE) and self.count > 1:
            raise InputError(
                f"partition: {self.name}: an embedding of {dimension} does not divide into "
                f"{self.count} slices of a "
                f"multiple of {COLUMN_MULTIPLE} columns; use another embedding_dimension or number "
                f"of slices"
            )
        width = dimension // self.count
        return range((self.number - 1) * width, self.number * width)


def whole_pieces(features: Sequence[str]) -> list[Piece]:
    """Every feature as one piece."""
    return [Piece(name) for name in features]


def are_whole(pieces: Sequence[Piece]) -> bool:
    """Whether no feature is cut."""
    return all(piece.count == 1 for piece in pieces)


def kept_columns(pieces: Sequence[Piece], dimension: int) -> list[int]:
    """Positions of the pieces' own columns in their concatenated embeddings of ``dimension``."""
    return [
        place * dimension + column
        for place, piece in enumerate(pieces)
        for column in piece.columns(dimension)
    ]


def schema_order(placed: Sequence[Piece], features: Sequence[str], dimension: int) -> list[int]:
    """The permutation that puts ``placed``, concatenated own columns, into the order of
    ``features``.

    It counts in units: the largest number of columns that divides every piece, hence whole
    embeddings if none is cut.
    """
    unit = gcd(*(len(piece.columns(dimension)) for piece in placed))
    starts = [
        (features.index(p.feature), start) for p in placed for start in p.columns(dimension)[::unit]
    ]
    return sorted(range(len(starts)), key=starts.__getitem__)


def cut_heavy(
    features: Sequence[str], weights: NDArray[np.float64], limit: float, dimension: int
) -> tuple[list[Piece], NDArray[np.float64]]:
    """The pieces and their weights: features heavier than ``limit`` are cut into the fewest slices
    that are each within it, if possible.

    Args:
        features: F names.
        weights: [F] > 0; a slice gets its share.
        limit: the most that a slice should weigh.
        dimension: width of an embedding; slices are multiples of 4 columns.
    """
    narrowest = dimension // COLUMN_MULTIPLE
    counts = [count for count in range(1, narrowest + 1) if narrowest % count == 0] or [1]
    pieces: list[Piece] = []
    cut: list[float] = []
    for feature, weight in zip(features, weights, strict=True):
        enough = [count for count in counts if weight / count <= limit]
        count = enough[0] if enough else counts[-1]
        pieces += [Piece(feature, number, count) for number in range(1, count + 1)]
        cut += [weight / count] * count
    return pieces, np.array(cut)
