"""Settings of the baselines."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from recsys.config import Settings

BaselineName = Literal["base_rate", "logistic", "trees"]


class LogisticSettings(Settings):
    """Logistic regression: a weight per id and per dense input, trained by AdaGrad with a rate per
    coordinate, in one pass.

    Attributes:
        learning_rate: learning rate of AdaGrad.
        initial_accumulator: initial value of AdaGrad's sums of squared gradients, where a gradient
            is summed over a batch.
        batch_size: examples per step.
    """

    learning_rate: PositiveFloat = 0.1
    initial_accumulator: NonNegativeFloat = 1.0
    batch_size: PositiveInt = 128


class TreesSettings(Settings):
    """LightGBM on dense features, small categories and statistics of the past, refitted from
    scratch each time.

    Attributes:
        trees: boosting rounds.
        learning_rate: shrinkage of each tree.
        leaves: leaves per tree.
        smallest_leaf: fewest rows in a leaf.
        bins: histogram bins per feature.
        refit_every_windows: windows between two fits.
        max_rows: rows used for training, the newest ones of the past.
        largest_category: features with larger tables enter only through their ids' counts and
            rates.
        smoothing: number of rows at the mean click rate added to smooth each id's rate.
        threads: LightGBM's threads; they do not change the results.
        seed: seed of LightGBM.
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
    """The baselines that students are compared with, and how each is trained.

    Attributes:
        run: which baselines.
        parallel: models trained in parallel; the results do not depend on it.
        logistic: the logistic regression.
        trees: LightGBM.
    """

    run: list[BaselineName] = Field(default=["base_rate", "logistic", "trees"], min_length=1)
    parallel: PositiveInt = 2
    logistic: LogisticSettings = LogisticSettings()
    trees: TreesSettings = TreesSettings()
