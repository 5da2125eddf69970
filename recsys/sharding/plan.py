"""Which shard of which embedding table is on which rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.sharding_plan import (
    calculate_shard_sizes_and_offsets,
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    placement,
    row_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recsys.config import InputError
from recsys.models.sequences import look_up_positions
from recsys.planning.tables import (
    SHARDINGS,
    SMALLEST_COLUMN_SHARD,
    Kind,
    computes_exactly,
    shard_bytes,
)
from recsys.sharding.communication import check_kind, sends_int8
from recsys.sharding.settings import ShardingSettings, check_table_names, inexact
from recsys.sharding.training_plan import collective_plan, needed_bytes
from recsys.units import BYTES_PER_GIB
from recsys.upstream import (
    EnumerableShardingSpec,
    RemoteDevice,
    ShardedTensor,
    ShardMetadata,
    admit_empty_shards,
)

ParameterShardingGenerator = Callable[
    [nn.Parameter, int, int, str, ModuleSharder[Any]], ParameterSharding
]

# Kernels with the optimiser in the backward pass. On a GPU also those with rows in host memory, all
# of them or all but a cache; not key_value, which needs a folder on disk.
IN_HOST_MEMORY = [
    EmbeddingComputeKernel.FUSED_UVM.value,
    EmbeddingComputeKernel.FUSED_UVM_CACHING.value,
]
COMPUTE_KERNELS = {
    "cpu": [EmbeddingComputeKernel.FUSED.value],
    "cuda": [EmbeddingComputeKernel.FUSED.value, *IN_HOST_MEMORY],
}
ON_ONE_HOST = [
    kind
    for kind, split in SHARDINGS.items()
    if split.spans == "node" and not (split.rows and split.columns)  # a grid needs several
]


class BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, offering every kind: all run over gloo, but TorchRec lists no row-wise
    kinds for the CPU."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Kinds that a planner may choose from."""
        return [kind.value for kind in ShardingType]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Kernels that a planner may choose from; the first one is used for tables whose kind is
        given."""
        return COMPUTE_KERNELS[compute_device_type]

    def shard(
        self, module: EmbeddingBagCollection, *arguments: Any, **more: Any
    ) -> ShardedEmbeddingBagCollection:
        """TorchRec's sharded collection, in which a rank may hold no rows, and sequences are looked
        up by position."""
        sharded = super().shard(module, *arguments, **more)
        admit_empty_shards(sharded)
        look_up_positions(sharded, module.embedding_bag_configs())
        return sharded


@dataclass(frozen=True)
class PlanRequest:
    """The input of a plan: settings, ranks, ranks per host, and groups of tables to keep on one
    rank."""

    settings: ShardingSettings
    world_size: int
    local_size: int
    table_groups: list[list[str]] | None

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.world_size // self.local_size

    def kind(self, table: str) -> Kind | None:
        """How ``table`` must be split; None if the planner is free."""
        fixed = self.settings.table_sharding.get(table)
        if fixed is not None:
            return fixed
        if self.table_groups is not None:
            return "table_wise"
        return None if self.settings.sharding == "planner" else self.settings.sharding


def make_plan(model: nn.Module, request: PlanRequest, sharder: ModuleSharder[Any]) -> ShardingPlan:
    """A plan for every EmbeddingBagCollection of ``model``.

    With ``table_groups`` (the towers of a partition), each group's tables are whole on one rank;
    groups go, largest first, to the rank with the fewest bytes. Tables named in ``table_sharding``
    are always split as given there. Collective: call it on every rank.

    Raises:
        InputError: ``table_sharding`` names an unknown table, columns are split with row-wise
            AdaGrad (TorchRec would silently run another algorithm), rows are split with int8
            communication, or tables do not fit into ``memory_gb``.
    """
    configs = [
        c for module in bag_collections(model).values() for c in module.embedding_bag_configs()
    ]
    _check_kinds([config.name for config in configs], request)
    fixed = _fixed_shards(
        [config for config in configs if request.kind(config.name) is not None], request
    )
    given = _fixed_plan(model, request, sharder, fixed) if fixed else ShardingPlan({})
    # If rows may be in host memory, the search chooses the kernels of all tables
    if len(fixed) == len(configs) and not request.settings.host_memory_gb:
        _check_memory(model, plan_rows(model, given, request.settings), request)
        return given
    rows = [
        row
        for row in (plan_rows(model, given, request.settings) if fixed else [])
        if row["table"] in fixed
    ]
    plan = _searched_plan(model, request, rows)
    for path, placed in given.plan.items():
        searched = plan.plan[path]
        assert isinstance(placed, EmbeddingModuleShardingPlan)
        assert isinstance(searched, EmbeddingModuleShardingPlan)
        for name in fixed.keys() & placed.keys():
            searched[name] = replace(
                placed[name],
                compute_kernel=searched[name].compute_kernel,
                cache_params=searched[name].cache_params,
            )
    return plan


def _fixed_plan(
    model: nn.Module,
    request: PlanRequest,
    sharder: ModuleSharder[Any],
    fixed: Mapping[str, ParameterShardingGenerator],
) -> ShardingPlan:
    """A plan for the tables in ``fixed``; TorchRec needs one for all tables, so the others are
    split by rows."""
    plan = ShardingPlan({})
    for path, module in bag_collections(model).items():
        names = [config.name for config in module.embedding_bag_configs()]
        plan.plan[path] = construct_module_sharding_plan(
            module,
            per_param_sharding={name: fixed.get(name, row_wise()) for name in names},
            sharder=sharder,
            local_size=request.local_size,
            world_size=request.world_size,
            device_type=request.settings.device,
        )
    return plan


def _check_kinds(tables: list[str], request: PlanRequest) -> None:
    settings = request.settings
    check_table_names(settings, "table_sharding", tables)
    for table in tables:
        kind = request.kind(table) or "table_wise"
        check_kind(settings, table, kind)
        if not computes_exactly(kind, settings.table_optimizer):
            key = "table_sharding" if table in settings.table_sharding else "sharding"
            raise InputError(
                f"{settings.where(key)}: {inexact(kind, settings.table_optimizer, table)}"
            )


def bag_collections(model: nn.Module) -> dict[str, EmbeddingBagCollection]:
    """The embedding bag collections of an unsharded model, by module path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, EmbeddingBagCollection)}


def plan_rows(
    model: nn.Module, plan: ShardingPlan, settings: ShardingSettings
) -> list[dict[str, Any]]:
    """One row per table: table, kind, ranks, bytes (weights and optimiser state over all ranks),
    and kernel and load_factor if the rows are in host memory."""
    rows = []
    for path, module in bag_collections(model).items():
        placed = plan.plan[path]
        assert isinstance(placed, EmbeddingModuleShardingPlan)
        for config in module.embedding_bag_configs():
            sharding = placed[config.name]
            copies = (
                len(sharding.ranks or [])
                if sharding.sharding_type == ShardingType.DATA_PARALLEL.value
                else 1
            )
            row = {
                "table": config.name,
                "kind": sharding.sharding_type,
                "ranks": list(sharding.ranks or []),
                "bytes": table_bytes(config, settings) * copies,
            }
            if sharding.compute_kernel in IN_HOST_MEMORY:
                cache = sharding.cache_params
                row |= {
                    "kernel": sharding.compute_kernel,
                    "load_factor": cache.load_factor if cache else None,
                }
            rows.append(row)
    return rows


def table_bytes(config: EmbeddingBagConfig, settings: ShardingSettings) -> int:
    """Bytes of a table's weights and of its optimiser state, which is always float32."""
    rows, columns = config.num_embeddings, config.embedding_dim
    return shard_bytes(rows, columns, settings.table_precision, settings.table_optimizer)


def _fixed_shards(
    configs: list[EmbeddingBagConfig], request: PlanRequest
) -> dict[str, ParameterShardingGenerator]:
    """How to place each table whose kind is given; tables and groups of tables go to the rank or
    host with the fewest bytes."""
    kinds: dict[str, Kind | None] = {config.name: request.kind(config.name) for config in configs}
    sizes = {config.name: table_bytes(config, request.settings) for config in configs}
    whole = [name for name, kind in kinds.items() if kind == "table_wise"]
    groups = [
        [t for t in group if t in whole]
        for group in request.table_groups or [[name] for name in whole]
    ]
    rank_of = spread_groups([group for group in groups if group], sizes, request.world_size)
    on_host = [[name] for name, kind in kinds.items() if kind in ON_ONE_HOST]
    host_of = spread_groups(on_host, sizes, request.hosts)
    return {
        c.name: _shards(c, kinds[c.name], rank_of.get(c.name, 0), host_of.get(c.name, 0), request)
        for c in configs
    }


def _shards(
    config: EmbeddingBagConfig, kind: Kind | None, rank: int, host: int, request: PlanRequest
) -> ParameterShardingGenerator:
    """One table on ``rank`` or ``host``, or over all ranks or hosts, depending on ``kind``."""
    local = [host * request.local_size + index for index in range(request.local_size)]
    match kind:
        case "data_parallel":
            return data_parallel()
        case "row_wise":
            return row_wise()
        case "column_wise":
            return column_wise(ranks=_column_places(config, list(range(request.world_size))))
        case "table_row_wise":
            return table_row_wise(host_index=host)
        case "table_column_wise":
            return _table_column_wise(_column_places(config, local))
        case "grid_shard":
            return _grid(_column_places(config, list(range(request.hosts))))
        case _:
            return table_wise(rank=rank)


def _column_places(config: EmbeddingBagConfig, places: list[int]) -> list[int]:
    """As many of ``places`` as the table's columns can be divided over."""
    vectors = config.embedding_dim // SMALLEST_COLUMN_SHARD
    shards = max(count for count in range(1, len(places) + 1) if vectors % count == 0)
    return places[:shards]


def _table_column_wise(ranks: list[int]) -> ParameterShardingGenerator:
    """Columns over the ranks of one host; TorchRec has no helper for this."""
    split = column_wise(ranks=ranks)

    def generate(*arguments: Any) -> ParameterSharding:
        return replace(split(*arguments), sharding_type=ShardingType.TABLE_COLUMN_WISE.value)

    return generate


def _grid(hosts: list[int]) -> ParameterShardingGenerator:
    """A block of columns per host, with its rows over the host's ranks; TorchRec's helper does not
    split fewer than 256 columns."""

    def generate(
        weight: nn.Parameter, local_size: int, world_size: int, device: str, _: ModuleSharder[Any]
    ) -> ParameterSharding:
        kind = ShardingType.GRID_SHARD.value
        columns = weight.shape[1] // len(hosts)
        sizes, offsets = calculate_shard_sizes_and_offsets(
            weight, world_size, local_size, kind, columns
        )
        ranks = [host * local_size + index for host in hosts for index in range(local_size)]
        shards = [
            ShardMetadata(
                shard_offsets=offset,
                shard_sizes=size,
                placement=placement(device, rank, local_size),
            )
            for size, offset, rank in zip(sizes, offsets, ranks, strict=True)
        ]
        return ParameterSharding(
            kind, EmbeddingComputeKernel.FUSED.value, ranks, EnumerableShardingSpec(shards)
        )

    return generate


def spread_groups(
    groups: list[list[str]], sizes: dict[str, int], world_size: int
) -> dict[str, int]:
    """The rank of each table: groups stay together and go, largest first, to the rank with the
    fewest bytes."""
    load = [0] * world_size
    placed: dict[str, int] = {}
    for group in sorted(groups, key=lambda g: (-sum(sizes[table] for table in g), g)):
        rank = min(range(world_size), key=lambda r: (load[r], r))
        load[rank] += sum(sizes[table] for table in group)
        placed |= dict.fromkeys(group, rank)
    return placed


def _searched_plan(
    model: nn.Module, request: PlanRequest, fixed: list[dict[str, Any]]
) -> ShardingPlan:
    """The plan that the planner predicts to be fastest, given the ``fixed`` tables."""
    modules = {
        c.name: path
        for path, m in bag_collections(model).items()
        for c in m.embedding_bag_configs()
    }
    plan = collective_plan(
        model, request.settings, request.hosts, request.local_size, modules, fixed
    )
    if plan is not None:
        return plan
    settings = request.settings
    if settings.table_memory == "file":
        raise InputError(
            f"{settings.where('table_file_dir')}: the tables do not fit what "
            f"{settings.table_file_dir} has free on {request.world_size} ranks; free some, or "
            "shrink the tables"
        )
    raise InputError(_too_large(request, "the planner found no plan"))


def _check_memory(model: nn.Module, rows: list[dict[str, Any]], request: PlanRequest) -> None:
    """Check what is held in memory; space for files is checked when it is reserved."""
    settings = request.settings
    needed = needed_bytes(model, settings, request.hosts, request.local_size, rows)
    if max(needed) > settings.memory_gb * BYTES_PER_GIB:
        what = f"rank {needed.index(max(needed))} needs {max(needed) / BYTES_PER_GIB:.2f} GiB"
        raise InputError(_too_large(request, what))


def _too_large(request: PlanRequest, what: str) -> str:
    settings = request.settings
    without = (
        ", which must not split rows because communication is int8"
        if sends_int8(settings.communication)
        else ""
    )
    return (
        f"{settings.where('memory_gb')}: the tables do not fit {settings.memory_gb:g} GiB "
        f"on {request.world_size} ranks: {what}{without}; raise memory_gb or world_size, or shrink "
        f"the tables"
    )


def local_shards(value: Tensor) -> list[tuple[Tensor, int, int]]:
    """(weight, first row, first column) of each of this rank's shards in a state_dict entry."""
    if isinstance(value, ShardedTensor):
        return [
            (s.tensor, s.metadata.shard_offsets[0], s.metadata.shard_offsets[1])
            for s in value.local_shards()
        ]
    return [(value, 0, 0)]


def gather_shards(value: ShardedTensor) -> Tensor | None:
    """The whole tensor ``value`` in the memory of rank 0's host, None on the other ranks;
    collective.

    It moves one shard at a time, so no GPU has to hold a table that needs several.
    """
    rank, mine = distributed.get_rank(), iter(value.local_shards())
    whole = torch.empty(value.metadata().size, dtype=value.dtype) if rank == 0 else None
    for part in value.metadata().shards_metadata:
        assert isinstance(part.placement, RemoteDevice)
        owner = part.placement.rank()
        tensor = next(mine).tensor.detach().cpu() if owner == rank else None
        if whole is None:
            if tensor is not None:
                distributed.send(tensor.contiguous(), dst=0)
            continue
        if tensor is None:
            tensor = torch.empty(part.shard_sizes, dtype=value.dtype)
            distributed.recv(tensor, src=owner)
        slices = zip(part.shard_offsets, part.shard_sizes, strict=True)
        whole[tuple(slice(start, start + size) for start, size in slices)] = tensor
    return whole
