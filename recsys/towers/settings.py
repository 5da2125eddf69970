"""How features are grouped into towers."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from recsys.config import Settings
from recsys.models.settings import ModelSettings


class PartitionSettings(Settings):
    """Settings of the tower partitioner.

    ``strategy``: ``coherent`` puts features with similar embeddings together, ``diverse``
    dissimilar ones; ``stride`` and ``random`` are baselines; ``manual`` takes ``manual_towers``.
    ``balance_ratio`` bounds the largest tower's feature count over the smallest's. The first two
    strategies train ``probe_model`` on the first ``probe_windows`` windows and average the
    cosines over ``affinity_batches`` batches of them: their absolute values, or, ``signed``, the cosines
    first and the absolute value after (the paper leaves it open).
    """

    towers: PositiveInt = 4
    strategy: Literal["coherent", "diverse", "stride", "random", "manual"] = "coherent"
    balance_ratio: float = Field(default=2.0, ge=1.0)
    dimensions: PositiveInt = 2
    probe_model: ModelSettings = ModelSettings()
    probe_windows: PositiveInt = 3
    affinity_batches: PositiveInt = 20
    affinity_mean: Literal["absolute", "signed"] = "signed"
    steps: PositiveInt = 1000
    learning_rate: PositiveFloat = 0.05
    restarts: PositiveInt = 4
    seed: int = 0
    manual_towers: list[list[str]] = Field(default=[])
