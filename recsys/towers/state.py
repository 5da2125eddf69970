"""Weights and gradients that are spread over ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from recsys.sharding.plan import local_shards
from recsys.upstream import ShardedTensor


def clip_gradients(
    shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter], peers: ProcessGroup, limit: float
) -> None:
    """Scale the gradients so that the joint norm of ``shared`` and every peer's ``own`` is at most
    ``limit``."""
    squares = get_total_norm(_gradients(own)).square()
    distributed.all_reduce(squares, group=peers)
    norm = (get_total_norm(_gradients(shared)).square() + squares).sqrt()
    clip_grads_with_norm_([*shared, *own], limit, norm)


def gather_parts(state: Mapping[str, Tensor], keeps_replicated: bool) -> dict[str, Tensor]:
    """All ranks' tensors, unsharded and float32, sorted by name, on rank 0; empty on the other
    ranks. Collective.

    ``keeps_replicated``: whether this rank sends its unsharded tensors; one rank that has them
    must.
    """
    mine = {
        name: (
            _size(value),
            [(row, column, weight.detach()) for weight, row, column in local_shards(value)],
        )
        for name, value in state.items()
        if keeps_replicated or isinstance(value, ShardedTensor)
    }
    ranks: list[Any] = [None] * distributed.get_world_size()
    root = distributed.get_rank() == 0
    distributed.gather_object(mine, ranks if root else None, dst=0)
    found: dict[str, Tensor] = {}
    for part in ranks if root else []:
        for name, (size, shards) in part.items():
            whole = found.setdefault(name, torch.empty(size))
            for row, column, weight in shards:
                _place(whole, row, column, weight)
    return dict(sorted(found.items()))


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _size(value: Tensor) -> torch.Size:
    return value.metadata().size if isinstance(value, ShardedTensor) else value.shape


def _place(whole: Tensor, row: int, column: int, weight: Tensor) -> None:
    """Copy a shard; an unsharded tensor may have any number of dimensions."""
    if whole.shape == weight.shape:
        whole.copy_(weight)
    else:
        whole[row : row + weight.shape[0], column : column + weight.shape[1]] = weight
