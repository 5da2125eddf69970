"""Settings that name withdrawn snapshots."""

from pydantic import Field

from recsys.config import Settings


class Withdrawal(Settings):
    """One withdrawn snapshot: of its name, exactly the one with these weights."""

    snapshot: str
    weights_hash: str


class WithdrawnSettings(Settings):
    """A person's decision, kept with the settings and not with the teacher's outputs."""

    snapshots: list[Withdrawal] = Field(default=[])

    @property
    def hashes(self) -> frozenset[str]:
        """Weights' hashes of all."""
        return frozenset(withdrawal.weights_hash for withdrawal in self.snapshots)
