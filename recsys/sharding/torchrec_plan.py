"""A plan as TorchRec's ShardingPlan, for DistributedModelParallel."""

from collections.abc import Mapping

from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import CacheParams, EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

from recsys.config import InputError
from recsys.sharding.planner import Plan, PlannedTable
from recsys.sharding.topology import Topology


def to_torchrec_plan(plan: Plan, topology: Topology, modules: Mapping[str, str]) -> ShardingPlan:
    """``plan`` for the embedding collections of a model.

    Args:
        modules: path of the collection that holds each table, e.g. {"table_shop": "embeddings"}.

    Raises:
        InputError: a table of one is not in the other.
    """
    planned = {table.table for table in plan.tables}
    strangers = sorted(planned ^ set(modules))
    if strangers:
        where = "the model" if strangers[0] in planned else "the plan"
        raise InputError(f"table {strangers[0]!r} is not in {where}; plan the tables of the model that is trained")
    result: dict[str, EmbeddingModuleShardingPlan] = {}
    for table in plan.tables:
        module = result.setdefault(modules[table.table], EmbeddingModuleShardingPlan())
        module[table.table] = _parameter_sharding(table, topology)
    return ShardingPlan(dict(result))


def _parameter_sharding(table: PlannedTable, topology: Topology) -> ParameterSharding:
    device, local = topology.hardware.device, topology.gpus
    shards = [
        ShardMetadata(shard_offsets=offset, shard_sizes=size, placement=placement(device, rank, local))
        for (offset, size), rank in zip(shard_geometry(table), table.ranks, strict=True)
    ]
    whole = table.kind == "data_parallel"
    return ParameterSharding(
        sharding_type=table.kind,
        compute_kernel=table.kernel,
        ranks=list(table.ranks),
        sharding_spec=None if whole else EnumerableShardingSpec(shards),
        cache_params=None if table.load_factor is None else CacheParams(load_factor=table.load_factor),
    )


def shard_geometry(table: PlannedTable) -> list[tuple[list[int], list[int]]]:
    """(offset, size), each [row, column], of the shard on each of ``table.ranks``.

    Rows are split as TorchRec does: blocks of rows / shards rounded up, the last ones short or empty.
    """
    if table.kind == "data_parallel":
        return [([0, 0], [table.rows, table.dimension])] * len(table.ranks)
    row_shards = len(table.ranks) // table.column_shards
    block, width = -(-table.rows // row_shards), table.dimension // table.column_shards
    starts = [min(index * block, table.rows) for index in range(row_shards + 1)]
    return [
        ([starts[row], column * width], [starts[row + 1] - starts[row], width])
        for column in range(table.column_shards)
        for row in range(row_shards)
    ]
