"""Which shard of which embedding table sits on which rank."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recsys.config import InputError
from recsys.training.settings import TrainSettings

DEVICE = "cpu"
BYTES_PER_GIB = 2**30
FLOAT_BYTES = 4
SMALLEST_COLUMN_SHARD = 4  # FBGEMM's rows are multiples of 4 floats


class BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, offering the kinds that run over gloo; it lists no row-wise on CPU by itself."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Kinds that a planner may choose from."""
        return [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value, ShardingType.COLUMN_WISE.value]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """The one kernel with the optimiser in the backward pass."""
        return [EmbeddingComputeKernel.FUSED.value]


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made for: settings, ranks, and groups of tables to keep on one rank."""

    settings: TrainSettings
    world_size: int
    table_groups: list[list[str]] | None


def make_plan(model: nn.Module, request: PlanRequest, sharder: ModuleSharder[Any]) -> ShardingPlan:
    """A plan for every EmbeddingBagCollection of ``model``.

    With ``table_groups`` (the towers of a partition) each group's tables sit whole on one rank;
    groups go, largest first, to the rank with the fewest bytes. Collective: call it on every rank.

    Raises:
        InputError: column-wise with row-wise AdaGrad (TorchRec would silently run another
            algorithm), or tables that do not fit ``memory_gb``.
    """
    settings = request.settings
    if settings.sharding == "column_wise" and settings.table_optimizer == "rowwise_adagrad":
        raise InputError(
            "params/train.yaml: sharding column_wise changes what rowwise_adagrad computes; "
            "use sharding table_wise or row_wise, or table_optimizer adagrad"
        )
    if settings.sharding == "planner" and request.table_groups is None:
        return _searched_plan(model, request, sharder)
    plan: dict[str, EmbeddingModuleShardingPlan] = {}
    for path, module in bag_collections(model).items():
        plan[path] = construct_module_sharding_plan(
            module,
            per_param_sharding=_fixed_kinds(module.embedding_bag_configs(), request),
            sharder=sharder,
            local_size=request.world_size,
            world_size=request.world_size,
            device_type=DEVICE,
        )
    result = ShardingPlan(dict(plan))
    _check_memory(plan_rows(model, result, settings), request)
    return result


def bag_collections(model: nn.Module) -> dict[str, EmbeddingBagCollection]:
    """The embedding bag collections of an unsharded model, by module path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, EmbeddingBagCollection)}


def plan_rows(model: nn.Module, plan: ShardingPlan, settings: TrainSettings) -> list[dict[str, Any]]:
    """One row a table: table, kind, ranks, bytes (weights and optimiser state over all ranks)."""
    rows = []
    for path, module in bag_collections(model).items():
        placed = plan.plan[path]
        assert isinstance(placed, EmbeddingModuleShardingPlan)
        for config in module.embedding_bag_configs():
            sharding = placed[config.name]
            rows.append(
                {
                    "table": config.name,
                    "kind": sharding.sharding_type,
                    "ranks": list(sharding.ranks or []),
                    "bytes": table_bytes(config, settings),
                }
            )
    return rows


def table_bytes(config: EmbeddingBagConfig, settings: TrainSettings) -> int:
    """Bytes of a table's float32 weights and of its optimiser state."""
    state = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": config.embedding_dim}[settings.table_optimizer]
    return config.num_embeddings * (config.embedding_dim + state) * FLOAT_BYTES


def _fixed_kinds(configs: list[EmbeddingBagConfig], request: PlanRequest) -> dict[str, Any]:
    kind, ranks = request.settings.sharding, list(range(request.world_size))
    if request.table_groups is None and kind == "row_wise":
        return {config.name: row_wise() for config in configs}
    if request.table_groups is None and kind == "column_wise":
        return {config.name: column_wise(ranks=_column_ranks(config, ranks)) for config in configs}
    sizes = {config.name: table_bytes(config, request.settings) for config in configs}
    groups = request.table_groups or [[name] for name in sizes]
    return {table: table_wise(rank=rank) for table, rank in spread_groups(groups, sizes, request.world_size).items()}


def _column_ranks(config: EmbeddingBagConfig, ranks: list[int]) -> list[int]:
    """As many ranks as the table's columns divide over."""
    vectors = config.embedding_dim // SMALLEST_COLUMN_SHARD
    shards = max(count for count in range(1, len(ranks) + 1) if vectors % count == 0)
    return ranks[:shards]


def spread_groups(groups: list[list[str]], sizes: dict[str, int], world_size: int) -> dict[str, int]:
    """Rank of each table: groups stay together; the largest first, each to the rank with the fewest bytes."""
    load = [0] * world_size
    placed: dict[str, int] = {}
    for group in sorted(groups, key=lambda g: (-sum(sizes[table] for table in g), g)):
        rank = min(range(world_size), key=lambda r: (load[r], r))
        load[rank] += sum(sizes[table] for table in group)
        placed |= dict.fromkeys(group, rank)
    return placed


def _searched_plan(model: nn.Module, request: PlanRequest, sharder: ModuleSharder[Any]) -> ShardingPlan:
    """The plan that TorchRec's planner estimates to be the fastest."""
    settings = request.settings
    topology = Topology(
        world_size=request.world_size,
        local_world_size=request.world_size,
        compute_device=DEVICE,
        ddr_cap=int(settings.memory_gb * BYTES_PER_GIB),
    )
    kinds = [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]
    tables = [c.name for module in bag_collections(model).values() for c in module.embedding_bag_configs()]
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=-(-settings.global_batch_size // request.world_size),
        constraints={table: ParameterConstraints(sharding_types=kinds) for table in tables},
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),  # memory_gb is for tables alone
        stats=[],
        debug=False,
    )
    group = distributed.group.WORLD
    assert group is not None
    try:
        return planner.collective_plan(model, [sharder], group)
    except PlannerError as error:
        raise InputError(_too_large(request, f"the planner found no plan ({error.error_type.value})")) from error


def _check_memory(rows: list[dict[str, Any]], request: PlanRequest) -> None:
    load = [0.0] * request.world_size
    for row in rows:
        for rank in row["ranks"]:
            load[rank] += row["bytes"] / len(row["ranks"])
    if max(load) > request.settings.memory_gb * BYTES_PER_GIB:
        raise InputError(_too_large(request, f"rank {load.index(max(load))} needs {max(load) / BYTES_PER_GIB:.2f} GiB"))


def _too_large(request: PlanRequest, what: str) -> str:
    return (
        f"params/train.yaml: the tables do not fit memory_gb {request.settings.memory_gb:g} "
        f"on {request.world_size} ranks: {what}; raise memory_gb or world_size, or shrink the tables"
    )


def local_shards(value: Tensor) -> list[tuple[Tensor, int, int]]:
    """(weight, first row, first column) of each shard that this rank holds of a state_dict entry."""
    if isinstance(value, ShardedTensor):
        return [(s.tensor, s.metadata.shard_offsets[0], s.metadata.shard_offsets[1]) for s in value.local_shards()]
    return [(value, 0, 0)]
