"""The interface of a transform that spreads a model over hosts, as the engine needs it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from recsys.models.partition_file import Partition
from recsys.models.peers import Peers
from recsys.sharding.communication import Overflows
from recsys.training.settings import TrainSettings


class TransformedModel(Protocol):
    """A model of which each group of hosts has a part; every method is collective."""

    @property
    def inside(self) -> ProcessGroup:
        """The process group of this rank's hosts, over which its tables are sharded."""
        ...

    @property
    def peers(self) -> Peers:
        """The exchange between groups."""
        ...

    def make_plan(self, model: nn.Module, sharder: ModuleSharder[Any]) -> ShardingPlan:
        """A plan for this group's tables, with global ranks in the shards' placements."""
        ...

    def average_own(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Average the gradients of what only this group has; returns the rest of ``parameters``."""
        ...

    def clip_gradients(self, parameters: list[nn.Parameter], limit: float) -> None:
        """Scale the gradients of ``parameters`` so that their norm over all groups is at most
        ``limit``."""
        ...

    def gather_whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state_dict of the whole model, float32, on rank 0; empty on the other ranks."""
        ...

    def gather_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of every group's plan, with the ranks' global numbers."""
        ...


Transform = Callable[[nn.Module, Partition, TrainSettings, Overflows], TransformedModel]
