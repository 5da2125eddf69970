"""Convert a plan to TorchRec's ShardingPlan, for DistributedModelParallel."""

from collections.abc import Mapping

from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from recsys.config import InputError
from recsys.planning.hardware import Topology
from recsys.planning.planner import Plan, PlannedTable, shard_geometry
from recsys.upstream import EnumerableShardingSpec, ShardMetadata


def to_torchrec_plan(plan: Plan, topology: Topology, modules: Mapping[str, str]) -> ShardingPlan:
    """``plan`` as a ShardingPlan for the embedding collections of a model.

    Args:
        modules: path of the collection that contains each table, e.g. {"table_shop": "embeddings"}.

    Raises:
        InputError: ``plan`` and ``modules`` have different tables.
    """
    planned = {table.table for table in plan.tables}
    strangers = sorted(planned ^ set(modules))
    if strangers:
        where = "the model" if strangers[0] in planned else "the plan"
        raise InputError(
            f"table {strangers[0]!r} is not in {where}; plan the tables of the model that is "
            f"trained"
        )
    result: dict[str, EmbeddingModuleShardingPlan] = {}
    for table in plan.tables:
        module = result.setdefault(modules[table.table], EmbeddingModuleShardingPlan())
        module[table.table] = _parameter_sharding(table, topology)
    return ShardingPlan(dict(result))


def _parameter_sharding(table: PlannedTable, topology: Topology) -> ParameterSharding:
    device, local = topology.hardware.device, topology.gpus
    shards = [
        ShardMetadata(
            shard_offsets=offset, shard_sizes=size, placement=placement(device, rank, local)
        )
        for (offset, size), rank in zip(shard_geometry(table), table.ranks, strict=True)
    ]
    whole = table.kind == "data_parallel"
    return ParameterSharding(
        sharding_type=table.kind,
        compute_kernel=table.kernel,
        ranks=list(table.ranks),
        sharding_spec=None if whole else EnumerableShardingSpec(shards),
        cache_params=None
        if table.load_factor is None
        else CacheParams(load_factor=table.load_factor),
    )
