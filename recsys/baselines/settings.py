"""Settings of the baselines."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from recsys.config import Settings

BaselineName = Literal["base_rate", "logistic", "trees"]


class LogisticSettings(Settings):
    """A weight per id and per dense input, by AdaGrad with a rate per coordinate, in one pass.

    ``initial_accumulator`` is what AdaGrad's sums start at, in units of squared gradients that are
    summed over a batch of ``batch_size`` examples.

    Attributes:
        learning_rate: of AdaGrad, per weight.
    """

    learning_rate: PositiveFloat = 0.1
    initial_accumulator: NonNegativeFloat = 1.0
    batch_size: PositiveInt = 128


class TreesSettings(Settings):
    """LightGBM on dense features, small categories and statistics of the past, trained anew.

    ``refit_every_windows``: how often. ``max_rows``: the newest of the past that it is trained on.
    ``largest_category``: ids of larger tables are seen through their statistics alone.
    ``smoothing``: examples at the mean rate that each id's click rate starts with.

    Attributes:
        trees: boosting rounds.
        learning_rate: shrinkage of each tree.
        leaves: of each tree.
        bins: per feature.
        seed: of LightGBM.
    """

    trees: PositiveInt = 100
    learning_rate: PositiveFloat = 0.05
    leaves: int = Field(default=15, ge=2)
    smallest_leaf: PositiveInt = 50
    bins: int = Field(default=63, ge=2, le=255)
    refit_every_windows: PositiveInt = 1
    max_rows: PositiveInt = 60_000
    largest_category: PositiveInt = 60
    smoothing: PositiveFloat = 20.0
    threads: PositiveInt = 1
    seed: int = Field(default=1, ge=0, lt=2**63)


class BaselinesSettings(Settings):
    """Which baselines students are compared with, and how each is trained, ``parallel`` at once."""

    run: list[BaselineName] = Field(default=["base_rate", "logistic", "trees"], min_length=1)
    parallel: PositiveInt = 2
    logistic: LogisticSettings = LogisticSettings()
    trees: TreesSettings = TreesSettings()
