"""The process group, for the distillation stages: rank, world size, and exchange of small
objects."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Every rank's ``value``, in the order of ranks, on rank 0; an empty list elsewhere."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values or []


def broadcast(value: T) -> T:
    """Rank 0's ``value`` on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def means(values: Sequence[float]) -> list[float]:
    """The mean of each of ``values`` over ranks, on every rank; collective."""
    total = torch.tensor(list(values), dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(total)
    return (total / world_size()).tolist()


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()
