"""Settings of tuning: which keys may change, in which ranges, and the budget."""

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recsys.config import Settings


class DimensionSettings(Settings):
    """The values that one key may take: a range or a list.

    Attributes:
        low: smallest number.
        high: largest number.
        log: whether numbers are spread evenly in their logarithm.
        choices: a list of values, instead of a range.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Any] = Field(default=[])

    @model_validator(mode="after")
    def _is_a_range_or_a_list(self) -> "DimensionSettings":
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if self.choices:
            if bounds or self.log or len(self.choices) < 2:
                raise ValueError("give low and high, or at least two choices and nothing else")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, got {self.low}")
        return self


Space = dict[str, DimensionSettings]


def _range(low: float, high: float) -> DimensionSettings:
    return DimensionSettings(low=low, high=high, log=True)


def _choices(*choices: Any) -> DimensionSettings:
    return DimensionSettings(choices=list(choices))


MODEL_SPACE: Space = {
    "students.table_learning_rate": _choices("auto", 0.01, 0.02, 0.05, 0.1, 0.2),
    "train.dense_learning_rate": _range(0.0003, 0.02),
    "train.global_batch_size": _choices(64, 128, 256, 512),
    "train.initial_accumulator": _range(0.01, 10.0),
    "students.model.embedding_dimension": _choices(4, 8, 16),
    "students.model.over_layers": _choices([32, 16], [64, 32], [128, 64]),
    "students.model.dense_layers": _choices([16, 8], [32, 8], [64, 32]),
    "students.model.architecture": _choices("dlrm", "dcn"),
    "students.model.cross_layers": _choices(1, 2, 3),
}
DISTILLATION_SPACE: Space = {
    "students.distillation.mode": _choices("shared", "affine", "auxiliary", "auxiliary_adapter"),
    "students.distillation.rows": _choices("auto", "own", "scores_elsewhere", "all"),
    "students.distillation.loss_weight": _range(0.1, 10.0),
    "students.distillation.gradient_scale": _range(0.3, 30.0),
    "students.distillation.head_layers": _choices([16], [32], [64, 32]),
    "students.distillation.staleness_half_life_hours": _choices(None, 12.0, 24.0, 48.0, 96.0),
}


class TuneSettings(Settings):
    """What is searched, and for how long.

    Attributes:
        minutes: duration of one call, including an estimate for the check of the best settings.
        trials: instead of minutes, end the search after this many trials of the study.
        workers: students trained in parallel, one thread each; null: one per core, at most two.
        finalists: number of best trials that are trained again, together with the current settings.
        seeds: seeds of these trainings, different from the search's.
        confidence: two-sided coverage of the intervals.
        seed: seed of the search.
        spaces: the keys that are tuned together, by the space's name; keys are named as for
            ``--set`` (train.KEY or students.KEY).
    """

    minutes: PositiveFloat = 15.0
    trials: PositiveInt | None = None
    workers: PositiveInt | None = None
    finalists: PositiveInt = 2
    seeds: int = Field(default=3, ge=2)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=1, ge=0, lt=2**63)
    spaces: dict[str, Space] = Field(
        default={"model": MODEL_SPACE, "distillation": DISTILLATION_SPACE}
    )
