"""The processes, hosts and devices on which a model is trained, and what happens when one is
lost."""

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from recsys.config import Settings
from recsys.sharding.settings import HostSettings

LOOPBACK_INTERFACE = "lo"


class NodeSettings(Settings):
    """Machines that train one model together; the same command runs on each, over one shared file
    system.

    Attributes:
        count: machines, with world_size / count ranks each.
        min_count: if machines are lost, this many continue from the last checkpoint; null: count.
        rendezvous_endpoint: host:port where they meet; the machine of that name keeps the list of
            nodes, so its loss ends the run.
        join_timeout_s: how long to wait for min_count of them.
        last_call_s: how long to wait for the others once min_count have joined.
        keep_alive_s: how often a node sends a sign of life; after three times as long without one,
            it counts as lost.
    """

    count: PositiveInt = 1
    min_count: PositiveInt | None = None
    rendezvous_endpoint: str | None = None
    join_timeout_s: PositiveInt = 600
    last_call_s: PositiveInt = 30
    keep_alive_s: PositiveInt = 5

    @model_validator(mode="after")
    def _can_meet(self) -> "NodeSettings":
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count {self.min_count} is above count {self.count}")
        if self.count > 1 and self.rendezvous_endpoint is None:
            raise ValueError("several nodes need rendezvous_endpoint: host:port of one of them")
        return self


class LaunchSettings(HostSettings):
    """Ranks and where they run. After a rank is lost, all ranks start again, up to ``max_restarts``
    times, and then with fewer ranks, down to ``min_world_size`` (None: world_size). A rank that
    makes no progress for ``rank_timeout_s`` is lost; this must exceed the longest pause between two
    collectives, such as reading a window. ``network_interface`` carries the ranks' traffic; None:
    the loopback, which works only on one node.
    """

    threads_per_rank: PositiveInt = 1
    max_restarts: int = Field(default=0, ge=0, description="restarts after a rank was lost")
    min_world_size: PositiveInt | None = None
    rank_timeout_s: PositiveFloat = 1800.0
    nodes: NodeSettings = NodeSettings()
    network_interface: str | None = None

    @field_validator("min_world_size")
    @classmethod
    def _is_smaller(cls, smallest: int | None, info: ValidationInfo) -> int | None:
        world_size = info.data.get("world_size", 1)
        if smallest is not None and smallest > world_size:
            raise ValueError(f"must be at most world_size {world_size}")
        return smallest

    @field_validator("nodes")
    @classmethod
    def _share_the_ranks(cls, nodes: NodeSettings, info: ValidationInfo) -> NodeSettings:
        world_size = info.data.get("world_size", nodes.count)
        if world_size % nodes.count:
            raise ValueError(f"world_size {world_size} is not a multiple of count {nodes.count}")
        if nodes.count > 1 and info.data.get("min_world_size") is not None:
            raise ValueError(
                "several nodes shrink by entire nodes: use min_count and leave min_world_size out"
            )
        return nodes

    @model_validator(mode="after")
    def _nodes_reach_each_other(self) -> "LaunchSettings":
        if self.nodes.count > 1 and self.network_interface is None:
            raise ValueError(
                f"network_interface: {self.nodes.count} nodes need the name of the interface "
                f"between them, such as eth0"
            )
        return self

    @property
    def interface(self) -> str:
        """The network interface for the ranks' traffic."""
        return self.network_interface or LOOPBACK_INTERFACE

    @property
    def ranks_per_node(self) -> int:
        """Number of ranks per machine."""
        return self.world_size // self.nodes.count

    def smaller_world(self, world_size: int) -> int | None:
        """The next smaller number of ranks, in whole hosts, to continue with after ``world_size``;
        None if there is none."""
        smaller = world_size - (self.ranks_per_host or 1)
        return smaller if smaller >= (self.min_world_size or self.world_size) else None
