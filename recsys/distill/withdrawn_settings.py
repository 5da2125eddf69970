"""Settings that name withdrawn snapshots."""

from pydantic import Field

from recsys.config import Settings


class Withdrawal(Settings):
    """One withdrawn snapshot: of its name, exactly the one with these weights.

    Attributes:
        snapshot: of the teacher, by its window.
        weights_hash: of that snapshot's weights.
    """

    snapshot: str
    weights_hash: str


class WithdrawnSettings(Settings):
    """A person's decision, kept with the settings and not with the teacher's outputs."""

    snapshots: list[Withdrawal] = Field(default=[])

    @property
    def hashes(self) -> frozenset[str]:
        """Weights' hashes of all."""
        return frozenset(withdrawal.weights_hash for withdrawal in self.snapshots)
