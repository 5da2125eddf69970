"""partition.json: which feature is in which tower, as a file to read, diff and version."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from recsys.config import InputError
from recsys.models.slices import Piece

PARTITION_FILE = "partition.json"
VERSION = 1


@dataclass(frozen=True)
class Partition:
    """Towers of categorical features, or of column slices of them (recsys/models/slices.py).

    ``features`` names the rows of ``affinity`` (n x n, in [0, 1]) and of ``coordinates``
    (n x dimensions); both are empty for strategies that need no probe, and ``stress`` is 0.
    """

    strategy: str
    towers: list[list[str]]
    features: list[str]
    balance_ratio: float = 1.0
    stress: float = 0.0
    affinity: list[list[float]] = field(default_factory=list)
    coordinates: list[list[float]] = field(default_factory=list)
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Write the partition to ``path`` (JSON, sorted keys)."""
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Partition":
        """Read a partition from ``path``.

        Raises:
            InputError: the file does not exist, or is not a partition of this version.
        """
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; run the partition stage first (towerflow partition)"
            )
        try:
            values = json.loads(path.read_text())
            partition = cls(**values)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: not a partition file: {' '.join(str(error).split())}"
            ) from error
        if partition.version != VERSION:
            raise InputError(
                f"{path}: version {partition.version} of the partition file; this code reads "
                f"{VERSION}"
            )
        return partition

    def check_features(self, names: list[str]) -> None:
        """Check that every feature in ``names``, or every slice of it, is in exactly one tower.

        Raises:
            InputError: a feature, or one of its slices, is missing, unknown or repeated.
        """
        self.pieces(names)

    def pieces(self, names: list[str]) -> list[Piece]:
        """The pieces in the towers, in the order of ``names``; slices of a feature follow each
        other.

        Raises:
            InputError: as :meth:`check_features`.
        """
        placed = [
            Piece(n) if n in names else Piece.parse(n) for tower in self.towers for n in tower
        ]
        for name in sorted(set(names) ^ {piece.feature for piece in placed}):
            problem = (
                "is in no tower" if name in names else "is not a categorical feature of the data"
            )
            raise InputError(
                f"partition: feature {name!r} {problem}; each of {len(names)} features needs one "
                f"tower"
            )
        repeated = sorted({piece.name for piece in placed if placed.count(piece) > 1})
        if repeated:
            raise InputError(f"partition: feature {repeated[0]!r} is in more than one tower")
        found = sorted(
            placed, key=lambda piece: (names.index(piece.feature), piece.count, piece.number)
        )
        for name in names:
            _check_slices(name, [piece for piece in found if piece.feature == name])
        return found


def _check_slices(name: str, found: list[Piece]) -> None:
    count = found[0].count
    if found != [Piece(name, number, count) for number in range(1, count + 1)]:
        slices = ", ".join(piece.name for piece in found)
        raise InputError(
            f"partition: feature {name!r} is in the towers as {slices}; give it whole, or 1ofn to "
            f"nofn"
        )
