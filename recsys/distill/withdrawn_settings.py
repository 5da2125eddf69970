"""Settings that name withdrawn snapshots."""

from pydantic import Field

from recsys.config import Settings


class Withdrawal(Settings):
    """One withdrawn snapshot, identified by name and weights.

    Attributes:
        snapshot: the snapshot's name, which is that of its window.
        weights_hash: hash of its weights.
    """

    snapshot: str
    weights_hash: str


class WithdrawnSettings(Settings):
    """Snapshots withdrawn by the user; this decision is kept with the settings, not with the
    teacher's outputs.

    Attributes:
        snapshots: the withdrawn snapshots.
    """

    snapshots: list[Withdrawal] = Field(default=[])

    @property
    def hashes(self) -> frozenset[str]:
        """The hashes of all withdrawn snapshots' weights."""
        return frozenset(withdrawal.weights_hash for withdrawal in self.snapshots)
