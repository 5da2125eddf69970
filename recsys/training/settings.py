"""How models are trained: ranks, batch, optimisers, sharding."""

import inspect
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from recsys.config import Settings, nearest_hint
from recsys.sharding.settings import ShardingSettings
from recsys.training.launch_settings import LaunchSettings

Quantisation = Literal["none", "fp16", "int8"]  # of table weights in checkpoints
# Classes of torch.optim by lower-case name. Not LBFGS (several losses per step), SparseAdam (sparse
# gradients), Muon (matrices only).
DENSE_OPTIMIZERS = {
    name.lower(): name
    for name in (
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "ASGD",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    )
}


class ScheduleSettings(Settings):
    """How the learning rates of dense part and tables change over the steps of an engine. They rise
    linearly, then fall to a fraction of their value and stay there.

    Attributes:
        warmup_steps: steps of the linear rise.
        decay_steps: steps of the fall.
        decay: shape of the fall.
        final_fraction: fraction of the learning rate after the fall.
        power: exponent of the polynomial fall.
    """

    warmup_steps: NonNegativeInt = 0
    decay_steps: PositiveInt | None = None
    decay: Literal["constant", "linear", "cosine", "polynomial"] = "constant"
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    power: PositiveFloat = 2.0

    @field_validator("decay")
    @classmethod
    def _has_steps(cls, decay: str, info: ValidationInfo) -> str:
        if decay != "constant" and info.data.get("decay_steps") is None:
            raise ValueError("needs decay_steps")
        return decay


class TrainSettings(LaunchSettings, ShardingSettings):
    """Settings of the engine, shared by the probe, the teacher and the students.

    Attributes:
        table_learning_rate: learning rate of the embedding tables.
        table_rate_factors: factors of single tables' rates, by table name. They hold for a table's
            slices and for its first-order weights, which are a column of it.
        initial_accumulator: initial value of AdaGrad's sums for the tables, in terms of gradients
            summed over a batch's examples, so that it does not depend on the batch size. At 0, the
            first gradient of a rare id moves it by the full learning rate, however small the
            gradient is.
        dense_learning_rate: learning rate of the dense part.
        dense_optimizer: name of a class of torch.optim, in upper or lower case.
        dense_optimizer_options: further arguments for this class.
        dense_clip_norm: largest norm of the dense part's gradient; null: not clipped.
        schedule: how learning rates change over the steps.
        skip_non_finite_batches: true: all ranks skip a batch whose loss is NaN or infinite; false:
            it ends the run.
        tower_transform: whether each tower of a model stays on ``hosts_per_tower`` hosts, so that
            only tower outputs cross hosts; set by the settings of towers. ``sharding`` and
            ``table_sharding`` then split its tables inside these hosts (planner: whole tables), and
            ``communication`` applies to the tower outputs.
        hosts_per_tower: number of hosts over which a tower is spread; set by the settings of
            towers.
        bf16: whether the dense part of the forward pass computes in bfloat16; weights and optimiser
            state stay float32. auto: if every rank has instructions for it, so the same settings
            may give different bits on another machine.
        overlap: whether the next batches are read and distributed during the current one; the
            result is bit-identical.
        prefetch_batches: batches read ahead.
    """

    table_learning_rate: PositiveFloat = 0.1
    table_rate_factors: dict[str, PositiveFloat] = Field(default_factory=dict)
    initial_accumulator: NonNegativeFloat = 1.0
    dense_learning_rate: PositiveFloat = 0.001
    dense_optimizer: str = "adam"
    dense_optimizer_options: dict[str, bool | int | float | tuple[float, ...] | None] = Field(
        default_factory=dict
    )
    dense_clip_norm: PositiveFloat | None = None
    schedule: ScheduleSettings = ScheduleSettings()
    skip_non_finite_batches: bool = False
    tower_transform: bool = False
    hosts_per_tower: PositiveInt = 1
    bf16: bool | Literal["auto"] = False
    overlap: bool = True
    prefetch_batches: PositiveInt = 2

    @field_validator("dense_optimizer")
    @classmethod
    def _is_in_torch_optim(cls, name: str) -> str:
        if name.lower() not in DENSE_OPTIMIZERS:
            raise ValueError(
                f"no such dense optimiser; {nearest_hint(name.lower(), DENSE_OPTIMIZERS)}"
            )
        return name.lower()

    @field_validator("dense_optimizer_options")
    @classmethod
    def _are_arguments(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if options and "dense_optimizer" in info.data:
            valid = optimizer_arguments(info.data["dense_optimizer"])
            for name in options:
                if name not in valid:
                    raise ValueError(
                        f"{info.data['dense_optimizer']} takes no {name!r}; "
                        f"{nearest_hint(name, valid)}"
                    )
        return options

    def rate_of(self, table: str) -> float:
        """The learning rate of a table, before ``schedule``."""
        # Not at the top: commands that do not train read settings too, without numpy
        from recsys.models.slices import Piece

        return self.table_learning_rate * self.table_rate_factors.get(
            Piece.parse(table).feature, 1.0
        )


def optimizer_arguments(name: str) -> list[str]:
    """The arguments of a dense optimiser besides parameters and learning rate."""
    from torch import optim  # not at the top: commands that do not train read settings too

    arguments = inspect.signature(getattr(optim, DENSE_OPTIMIZERS[name])).parameters
    return [argument for argument in arguments if argument not in ("params", "lr")]
