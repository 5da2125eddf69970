"""The tower transform: each group of hosts keeps the tables and modules of its towers (DMT, arXiv
2403.00877, section 3.1).

Flat: ids go to every rank, look-up, embeddings go to every rank. Transformed: ids go to the peers,
look-up and exchange happen inside the hosts, tower modules run on the peers' examples, tower
outputs go to the peers. The model's outputs, gradients and checkpoints do not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torchrec.distributed.types import (
    CommOp,
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

from recsys.config import InputError
from recsys.models.names import TABLE_PREFIX
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.slices import Piece
from recsys.planning.tables import Kind
from recsys.sharding.communication import Overflows, average_gradients, wire_codecs
from recsys.sharding.plan import PlanRequest, make_plan, table_bytes
from recsys.sharding.settings import CommunicationSettings, check_table_names
from recsys.towers.exchange import PeerExchange
from recsys.towers.ids import IdExchange
from recsys.towers.state import clip_gradients, gather_parts
from recsys.towers.tower_groups import TowerGroups, place_towers, tower_groups
from recsys.towers.tower_hosts import KINDS_INSIDE, check_kinds_inside
from recsys.training.settings import TrainSettings
from recsys.upstream import EnumerableShardingSpec, RemoteDevice


@dataclass(frozen=True)
class TowerTransform:
    """A transformed ranker, and what the engine does differently for it. Every method is
    collective.

    Attributes:
        groups: process groups.
        request: request for the plan of this group's tables over its ranks.
        own: parameters of this group's tower modules and sequence attention, which ranks of other
            groups do not have.
        peers: the exchange between groups.
    """

    groups: TowerGroups
    request: PlanRequest
    own: list[nn.Parameter]
    peers: PeerExchange

    @property
    def inside(self) -> distributed.ProcessGroup:
        """The ranks of this group."""
        return self.groups.inside

    def make_plan(self, model: nn.Module, sharder: ModuleSharder[Any]) -> ShardingPlan:
        """A plan for this group's tables: ranks are numbered within the group, placements of shards
        over all ranks.

        Raises:
            InputError: as :func:`recsys.sharding.plan.make_plan`.
        """
        plan = make_plan(model, self.request, sharder)
        for path in plan.plan:
            for sharding in cast(EmbeddingModuleShardingPlan, plan.plan[path]).values():
                for shard in cast(EnumerableShardingSpec, sharding.sharding_spec).shards:
                    rank = cast(RemoteDevice, shard.placement).rank()
                    assert rank is not None
                    shard.placement = RemoteDevice(
                        f"rank:{self._first_rank + rank}/{self.request.settings.device}"
                    )
        return plan

    def average_own(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Average the gradients of this group's tower modules over its ranks; returns the rest of
        ``parameters``.

        The exchange of outputs has already divided them by the number of groups, so this gives the
        global mean.
        """
        gradients = [parameter.grad for parameter in self.own if parameter.grad is not None]
        average_gradients(gradients, group=self.groups.inside)
        return self._shared(parameters)

    def clip_gradients(self, parameters: list[nn.Parameter], limit: float) -> None:
        """Scale the gradients of ``parameters`` so that their norm over all groups' towers is at
        most ``limit``."""
        clip_gradients(self._shared(parameters), self.own, self.groups.peers, limit)

    def gather_whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state_dict of the untransformed model, float32, on rank 0; empty on the other
        ranks."""
        return gather_parts(state, keeps_replicated=self.groups.inside.rank() == 0)

    def gather_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of every group's plan, with the ranks' global numbers."""
        own = [row | {"ranks": [self._first_rank + rank for rank in row["ranks"]]} for row in rows]
        groups: list[Any] = [None] * self.groups.count
        distributed.all_gather_object(groups, own, group=self.groups.peers)
        return [row for group in groups for row in group]

    @property
    def _first_rank(self) -> int:
        return self.groups.index * self.groups.size

    def _shared(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        own = {id(parameter) for parameter in self.own}
        return [parameter for parameter in parameters if id(parameter) not in own]


def transform(
    model: nn.Module, partition: Partition, settings: TrainSettings, overflows: Overflows
) -> TowerTransform:
    """Reduce ``model``, which contains a ranker with the towers of ``partition``, to this rank's
    tables and towers.

    Names in the state_dict stay the same. ``communication`` applies to the tower outputs between
    hosts, and ``overflows`` is told about numbers too large for it. Collective.

    Raises:
        InputError: ``model`` has no towers, the hosts do not fit the towers, or a kind of sharding
            does not stay inside a tower's hosts.
    """
    ranker = _ranker(model, settings)
    sharding, table_sharding = _kinds_inside(ranker, settings)
    groups = tower_groups(settings, len(partition.towers))
    _check_sequences(ranker, partition, settings)
    tables = ranker.embeddings.embedding_bag_configs()
    bytes_of = {config.name: table_bytes(config, settings) for config in tables}
    # 0: it uses its target's table
    sizes = {p.name: bytes_of.get(TABLE_PREFIX + p.name, 0) for p in ranker.pieces}
    placed = place_towers(partition.towers, sizes, groups.count)
    pieces = [
        [p for p in ranker.pieces if p.name in _names(partition, towers)] for towers in placed
    ]
    features = [list(dict.fromkeys(piece.feature for piece in held)) for held in pieces]
    widths = _widths(ranker)
    outputs = [[(tower, widths[tower]) for tower in towers] for towers in placed]
    codecs = (wire_codecs(settings.communication, gcd(*widths), overflows) or {}).get(
        CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL.name
    )
    lists = {config.feature_names[0] for config in tables if config.pooling is PoolingType.MEAN}
    lists |= set(ranker.sequences.sequences)
    ids = IdExchange(groups.peers, features, lists, _id_type(tables))
    ranker.peers = PeerExchange(ids, outputs, codecs)
    _keep(ranker, partition, set(placed[groups.index]), pieces[groups.index])
    own = {config.name for config in ranker.embeddings.embedding_bag_configs()}
    fixed = {table: kind for table, kind in table_sharding.items() if table in own}
    as_is = CommunicationSettings()
    inside = settings.model_copy(
        update={"sharding": sharding, "table_sharding": fixed, "communication": as_is}
    )
    request = PlanRequest(inside, groups.size, groups.size, table_groups=None)
    modules = [*ranker.interaction.towers.parameters(), *ranker.sequences.parameters()]
    return TowerTransform(groups, request, modules, ranker.peers)


def _check_sequences(ranker: Ranker, partition: Partition, settings: TrainSettings) -> None:
    """Check that each sequence is in its target's tower: attention needs the target's embedding,
    and only tower outputs cross hosts."""
    for name, one in ranker.sequences.sequences.items():
        if not any({name, one.target} <= set(tower) for tower in partition.towers):
            raise InputError(
                f"{settings.where('tower_transform')}: the sequence {name} and its target "
                f"{one.target} are in different towers; put them in one (partition.strategy: "
                "manual), or set false"
            )


def _ranker(model: nn.Module, settings: TrainSettings) -> Ranker:
    rankers = [module for module in model.modules() if isinstance(module, Ranker)]
    if len(rankers) != 1 or rankers[0].interaction.members is None:
        raise InputError(
            f"{settings.where('tower_transform')}: the model has no towers; set module.enabled: "
            "true"
        )
    return rankers[0]


def _id_type(tables: list[EmbeddingBagConfig]) -> torch.dtype:
    """The type of ids on the wire: int32 if it can count the rows of every table."""
    rows = max(config.num_embeddings for config in tables)
    return torch.int32 if rows - 1 <= torch.iinfo(torch.int32).max else torch.int64


def _names(partition: Partition, towers: list[int]) -> set[str]:
    return {name for tower in towers for name in partition.towers[tower]}


@torch.no_grad()
def _widths(ranker: Ranker) -> list[int]:
    """Width O of each tower's output, from a batch without examples."""
    empty = torch.empty(0, len(ranker.pieces), ranker.embedding_dimension)
    return [output.shape[1] for output in ranker.interaction.compress(empty)]


def _keep(ranker: Ranker, partition: Partition, own: set[int], pieces: list[Piece]) -> None:
    """Remove all tables and attention except those of ``pieces``, and all tower modules except
    those in ``own``."""
    names = [piece.name for piece in pieces]
    tables = {TABLE_PREFIX + name for name in names}
    ranker.sequences.keep(names)
    ranker.hold(
        pieces, [c for c in ranker.embeddings.embedding_bag_configs() if c.name in tables], "meta"
    )
    positions = [
        [names.index(n) for n in t] if i in own else [] for i, t in enumerate(partition.towers)
    ]
    ranker.interaction.members = positions
    for index in range(len(positions)):
        if index not in own:
            ranker.interaction.towers[index] = nn.Identity()


def _kinds_inside(ranker: Ranker, settings: TrainSettings) -> tuple[Kind, dict[str, Kind]]:
    """``sharding`` and ``table_sharding``, translated to the ranks of a tower."""
    tables = [config.name for config in ranker.embeddings.embedding_bag_configs()]
    check_table_names(settings, "table_sharding", tables)
    check_kinds_inside(settings)
    fixed: dict[str, Kind] = {
        table: KINDS_INSIDE[kind] for table, kind in settings.table_sharding.items()
    }
    return KINDS_INSIDE[settings.sharding], fixed
