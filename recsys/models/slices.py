"""Column slices of large tables, which stand in towers of their own (DMT, arXiv 2403.00877, section
3.3).

A slice is a table: of the feature's rows, and of some of its columns. In a partition it is called
``user:1of2``, the first half of the columns of ``user``. To a tower it is a feature whose other
columns are 0.
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
    """The columns of a feature's embedding that are part ``number`` of ``count`` equal ones; 1 of 1
    is the whole."""

    feature: str
    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, name: str) -> "Piece":
        """The piece that is called ``name``; a name without a slice in it is a whole feature's."""
        found = NAME.fullmatch(name)
        return (
            cls(found["feature"], int(found["number"]), int(found["count"])) if found else cls(name)
        )

    @property
    def name(self) -> str:
        """As in a partition."""
        return self.feature if self.count == 1 else f"{self.feature}:{self.number}of{self.count}"

    def columns(self, dimension: int) -> range:
        """Its columns of the feature's ``dimension``.

        Raises:
            InputError: they cannot be cut so.
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
    """Every feature uncut."""
    return [Piece(name) for name in features]


def are_whole(pieces: Sequence[Piece]) -> bool:
    """Whether none is cut."""
    return all(piece.count == 1 for piece in pieces)


def kept_columns(pieces: Sequence[Piece], dimension: int) -> list[int]:
    """Where the own columns of ``pieces`` lie in their embeddings of ``dimension``, laid one after
    the other."""
    return [
        place * dimension + column
        for place, piece in enumerate(pieces)
        for column in piece.columns(dimension)
    ]


def schema_order(placed: Sequence[Piece], features: Sequence[str], dimension: int) -> list[int]:
    """How to put ``placed``, own columns laid one after the other, in the order of ``features``.

    In units: the most columns that divide every piece, so whole embeddings where none is cut.
    """
    unit = gcd(*(len(piece.columns(dimension)) for piece in placed))
    starts = [
        (features.index(p.feature), start) for p in placed for start in p.columns(dimension)[::unit]
    ]
    return sorted(range(len(starts)), key=starts.__getitem__)


def cut_heavy(
    features: Sequence[str], weights: NDArray[np.float64], limit: float, dimension: int
) -> tuple[list[Piece], NDArray[np.float64]]:
    """The features, those heavier than ``limit`` in as few slices as are each no heavier, if there
    are such; weights.

    Args:
        features: F names.
        weights: [F] > 0; a slice has its part.
        limit: the most that a slice should weigh.
        dimension: of an embedding, whose slices are multiples of 4.
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
