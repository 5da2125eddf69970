"""Count what collectives send: bytes to each rank, and thus bytes across hosts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from recsys.upstream import TorchDispatchMode

ALL_TO_ALL = "alltoall_base_"


@dataclass(frozen=True)
class AllToAll:
    """An all-to-all from this rank's point of view.

    Attributes:
        ranks: the ranks of its process group, as global numbers.
        sent: bytes to each of ``ranks``, including itself.
        dtype: type of what was sent: integers are ids, lengths and sizes, floats are tower outputs
            or embeddings.
    """

    ranks: tuple[int, ...]
    sent: tuple[int, ...]
    dtype: torch.dtype

    def bytes_across(self, rank: int, ranks_per_host: int) -> int:
        """Bytes that the rank ``rank`` sent to other hosts, with ``ranks_per_host`` ranks per
        host."""
        host = rank // ranks_per_host
        return sum(
            size
            for other, size in zip(self.ranks, self.sent, strict=True)
            if other // ranks_per_host != host
        )


class AllToAllRecorder(TorchDispatchMode):
    """A context that records every all-to-all of this thread, including those in the backward pass
    on the CPU.

    Reductions are left out: how often they send a byte depends on their algorithm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[AllToAll] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record the call, then make it."""
        if func.namespace == "c10d" and func.name().endswith(ALL_TO_ALL):
            self.found.append(_all_to_all(args[1], ProcessGroup.unbox(args[2]), args[4]))
        return func(*args, **(kwargs or {}))


def _all_to_all(sent: Tensor, group: ProcessGroup, splits: list[int]) -> AllToAll:
    """The record of an all-to-all; ``splits`` counts rows of ``sent`` per rank (empty: equal
    parts)."""
    size = sent.numel() * sent.element_size()
    rows = len(sent) if splits else group.size()
    counts = splits or [1] * group.size()
    return AllToAll(
        tuple(distributed.get_process_group_ranks(group)),
        tuple(size * n // max(rows, 1) for n in counts),
        sent.dtype,
    )
