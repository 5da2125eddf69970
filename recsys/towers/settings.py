"""How features are grouped into towers."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from recsys.config import Settings
from recsys.models.settings import ModelSettings

PROBED = ("coherent", "diverse", "both", "spectral")
Balance = Literal["count", "bytes", "lookup_cost"]


class PartitionSettings(Settings):
    """Settings of the tower partitioner.

    ``strategy``: ``coherent`` puts features with similar embeddings together, ``diverse``
    dissimilar ones, ``both`` tries the two and keeps the one whose ranker with towers predicts the
    probe's windows better, each before it learns it (NE from the second on). Baselines:
    ``spectral`` (of the same affinity), ``stride``, ``random``, ``greedy`` (the next heaviest to the
    lightest tower); ``manual`` takes ``manual_towers``.

    ``balance`` is what a feature weighs: 1, its table's bytes, or the embedding bytes it looks up an example
    (rows x width). ``balance_ratio`` bounds the largest tower's feature count over the smallest's; for
    other weights the heaviest tower over the mean, or over what greedy reaches if that is more.

    The probed strategies train a probe on the first ``probe_windows`` windows, ``probe_epochs`` times over (a
    probe is not served, so it may overfit): ``probe: ranker`` is
    ``probe_model``; ``factorization`` a factorization machine of its width, whose cosines follow the
    interactions more closely. They average cosines over ``affinity_batches`` batches: the absolute
    values, their root mean square (``squared``), or, ``signed``, the cosines first and the absolute value
    after (the paper leaves it open), of embeddings less their mean if ``affinity_centred``.
    ``stretch_distances`` maps the distances of pairs onto [0, 1] before the map is drawn: what all
    pairs share has no place in few dimensions.
    """

    towers: PositiveInt = 4
    strategy: Literal["coherent", "diverse", "both", "spectral", "stride", "random", "greedy", "manual"] = "coherent"
    balance: Balance = "count"
    balance_ratio: float = Field(default=2.0, ge=1.0)
    dimensions: PositiveInt = 2
    stretch_distances: bool = False
    probe: Literal["ranker", "factorization"] = "ranker"
    probe_model: ModelSettings = ModelSettings()
    probe_windows: PositiveInt = 3
    probe_epochs: PositiveInt = 1
    affinity_batches: PositiveInt = 20
    affinity_mean: Literal["absolute", "squared", "signed"] = "signed"
    affinity_centred: bool = False
    steps: PositiveInt = 1000
    learning_rate: PositiveFloat = 0.05
    restarts: PositiveInt = 4
    seed: int = 0
    manual_towers: list[list[str]] = Field(default=[])
