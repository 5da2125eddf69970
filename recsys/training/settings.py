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
    """The learning rates, dense and of the tables, over the steps of one engine.

    They rise linearly over ``warmup_steps``, then fall over ``decay_steps`` to ``final_fraction``
    of their value and stay there. ``power`` is the exponent of the polynomial decay.

    Attributes:
        decay: of the dense learning rate after the warm-up.
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

    ``bf16`` runs the dense part of the forward pass in bfloat16; weights and optimiser state stay
    float32. ``auto`` does so where every rank has instructions for it, so the same settings may
    give other bits on another machine.

    ``tower_transform``, which the settings of towers set, keeps each tower of a model on
    ``hosts_per_tower`` hosts, where ``sharding`` and ``table_sharding`` split its tables (planner:
    whole tables), so that only tower outputs cross hosts; it changes no model without towers.
    ``communication`` is then that of the tower outputs; inside the hosts all is sent as it is.
    ``initial_accumulator`` is what AdaGrad's sums of the tables start at, in units of gradients
    that are summed over a batch's examples, so that it does not depend on the batch size. At 0 the
    first gradients of a rare id move it by the whole learning rate, whatever they are.
    ``dense_optimizer`` is the name of a class of torch.optim in any case,
    ``dense_optimizer_options`` its further arguments. ``dense_clip_norm`` is the largest norm of
    the dense part's gradient. A batch whose loss is NaN or infinite ends the run, or, with
    ``skip_non_finite_batches``, is left out by all ranks. ``overlap`` reads up to
    ``prefetch_batches`` batches ahead and distributes the next one while one is computed; it
    changes no bit of the result.
    """

    table_learning_rate: PositiveFloat = 0.1
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


def optimizer_arguments(name: str) -> list[str]:
    """What a dense optimiser takes besides the parameters and the learning rate."""
    from torch import optim  # not at the top: commands that train nothing read settings too

    arguments = inspect.signature(getattr(optim, DENSE_OPTIMIZERS[name])).parameters
    return [argument for argument in arguments if argument not in ("params", "lr")]
