"""Optimisers for the dense part and the tables, and learning rates over the steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.rowwise_adagrad import adagrad

from recsys.config import InputError
from recsys.training.settings import DENSE_OPTIMIZERS, ScheduleSettings, TrainSettings

TABLE_OPTIMIZERS = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}
ROWS_PER_STEP = 65536
STEP_OPTIONS = ("lr", "weight_decay", "lr_decay", "eps", "maximize")
FBGEMM_EPSILON = 1e-8  # added to the root of the sum in FBGEMM's AdaGrad kernels


class BlockwiseAdagrad(RowWiseAdagrad):
    """TorchRec's row-wise AdaGrad, ROWS_PER_STEP rows at a time: bit-identical, without a copy of
    the whole gradient in memory."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step for every table that has a gradient."""
        for group in self.param_groups:
            options = {name: group[name] for name in STEP_OPTIONS}
            for table in group["params"]:
                if table.grad is not None:
                    rows, gradients, sums = (
                        list(whole.split(ROWS_PER_STEP))
                        for whole in (table, table.grad, self.state[table]["sum"])
                    )
                    steps = [torch.tensor(0.0)] * len(rows)  # counted only for a decay, which is 0
                    adagrad(rows, gradients, sums, steps, **options)


def table_optimizer(settings: TrainSettings) -> type[torch.optim.Optimizer]:
    """The optimiser class that the tables' kernels run.

    Raises:
        InputError: the CPU has no kernel for it.
    """
    if settings.device == "cuda" and settings.table_optimizer == "adam":
        return torch.optim.Adam
    if settings.table_optimizer not in TABLE_OPTIMIZERS:
        raise InputError(
            f"{settings.where('table_optimizer')}: {settings.table_optimizer} has no kernel on the "
            f"CPU; there are: {', '.join(TABLE_OPTIMIZERS)}"
        )
    return TABLE_OPTIMIZERS[settings.table_optimizer]


def dense_optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings
) -> torch.optim.Optimizer:
    """The optimiser of the dense part.

    Raises:
        InputError: it refuses the options.
    """
    options: dict[str, Any] = dict(settings.dense_optimizer_options)
    if settings.dense_optimizer == "adam":
        options.setdefault("fused", True)
    optimizer = getattr(torch.optim, DENSE_OPTIMIZERS[settings.dense_optimizer])
    try:
        return optimizer(parameters, lr=settings.dense_learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{settings.where('dense_optimizer_options')}: {settings.dense_optimizer} refuses "
            f"{options}: {error}"
        ) from error


def first_state(parameter: nn.Parameter, settings: TrainSettings) -> dict[str, Tensor]:
    """Optimiser state of a dense parameter after a step with zero gradient, for names, shapes and
    types."""
    copy = nn.Parameter(parameter.detach().clone())
    copy.grad = torch.zeros_like(copy)
    optimizer = dense_optimizer([copy], settings)
    optimizer.step()
    return tensors(optimizer.state[copy])


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a parameter's optimiser state."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def replicated_table_optimizer(
    tables: Mapping[str, nn.Parameter], settings: TrainSettings
) -> torch.optim.Optimizer:
    """The same computation as FBGEMM's kernel, for tables that every rank holds in full, with a
    dense gradient.

    Args:
        tables: weights by table name.

    Raises:
        InputError: the optimiser is adam, which treats rows outside a batch differently when dense.
    """
    if settings.table_optimizer not in TABLE_OPTIMIZERS:
        raise InputError(
            f"{settings.where('table_optimizer')}: {settings.table_optimizer} has no data_parallel "
            f"form; use another kind"
        )
    by_rate: dict[float, list[nn.Parameter]] = {}
    for table, weights in tables.items():
        by_rate.setdefault(settings.rate_of(table), []).append(weights)
    groups: list[Any] = [{"params": weights, "lr": rate} for rate, weights in by_rate.items()]
    if settings.table_optimizer == "sgd":
        return torch.optim.SGD(groups)
    options: dict[str, Any] = {
        "eps": FBGEMM_EPSILON,
        "initial_accumulator_value": first_sum(settings),
    }
    if settings.table_optimizer == "rowwise_adagrad":
        return BlockwiseAdagrad(groups, **options)
    # The fused step needs no second copy of a table in memory; it does not exist on GPUs
    return torch.optim.Adagrad(groups, fused=settings.device == "cpu", **options)


def first_sum(settings: TrainSettings) -> float:
    """The initial value of AdaGrad's sums of squared gradients for tables; 0 for other optimisers.

    The engine's gradients are means over the global batch of B examples, so they are B times
    smaller than the sums to which ``initial_accumulator`` refers.
    """
    if settings.table_optimizer not in ("adagrad", "rowwise_adagrad"):
        return 0.0
    return settings.initial_accumulator / settings.global_batch_size**2


def rate_factor(step: int, schedule: ScheduleSettings) -> float:
    """The factor for the learning rates at optimiser step ``step``, from 0."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "constant" or schedule.decay_steps is None:
        return 1.0
    done = min((step - schedule.warmup_steps) / schedule.decay_steps, 1.0)
    if schedule.decay == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        left = (1.0 - done) ** (schedule.power if schedule.decay == "polynomial" else 1.0)
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * left


def is_constant(schedule: ScheduleSettings) -> bool:
    """Whether the learning rates never change."""
    return schedule == ScheduleSettings(
        final_fraction=schedule.final_fraction, power=schedule.power
    )


def table_rates(optimizer: torch.optim.Optimizer, settings: TrainSettings) -> list[float]:
    """The learning rate of each of the groups of an optimiser of tables, before the schedule.

    Kernels hold theirs in float32; the number in the settings is exact.
    """
    known = {settings.rate_of(table) for table in ("", *settings.table_rate_factors)}
    return [
        min(known, key=lambda rate: abs(rate - group["lr"])) for group in optimizer.param_groups
    ]


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Set the learning rate of each group of ``optimizer``."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
