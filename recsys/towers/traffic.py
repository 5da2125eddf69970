"""Counts what collectives send: bytes to each rank, and so bytes that cross hosts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from recsys.upstream import TorchDispatchMode

ALL_TO_ALL = "alltoall_base_"


@dataclass(frozen=True)
class AllToAll:
    """One all-to-all, as this rank saw it.

    Attributes:
        ranks: of its process group, as global numbers.
        sent: bytes to each of ``ranks``, itself included.
        dtype: of what was sent: integers are ids, lengths and sizes, floats tower outputs or
            embeddings.
    """

    ranks: tuple[int, ...]
    sent: tuple[int, ...]
    dtype: torch.dtype

    def bytes_across(self, rank: int, ranks_per_host: int) -> int:
        """Bytes that rank ``rank`` sent to other hosts of ``ranks_per_host`` ranks."""
        host = rank // ranks_per_host
        return sum(
            size
            for other, size in zip(self.ranks, self.sent, strict=True)
            if other // ranks_per_host != host
        )


class AllToAllRecorder(TorchDispatchMode):
    """Context that keeps every all-to-all of this thread, the backward pass's on the CPU included.

    Reductions are left out: how often they send a byte is their algorithm's affair.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[AllToAll] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note the call, then make it."""
        if func.namespace == "c10d" and func.name().endswith(ALL_TO_ALL):
            self.found.append(_all_to_all(args[1], ProcessGroup.unbox(args[2]), args[4]))
        return func(*args, **(kwargs or {}))


def _all_to_all(sent: Tensor, group: ProcessGroup, splits: list[int]) -> AllToAll:
    """``splits`` counts rows of ``sent`` for each rank; empty: equal parts."""
    size = sent.numel() * sent.element_size()
    rows = len(sent) if splits else group.size()
    counts = splits or [1] * group.size()
    return AllToAll(
        tuple(distributed.get_process_group_ranks(group)),
        tuple(size * n // max(rows, 1) for n in counts),
        sent.dtype,
    )
