"""Run the planner for the engine: convert its tables and settings to a model to plan, and the plan
to TorchRec's."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

from torch import distributed, nn
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recsys.planning.assess import assess, ways_of
from recsys.planning.hardware import Topology
from recsys.planning.planner import Plan, Way, find_plan
from recsys.planning.tables import SHARDINGS, PlannedModel, TableGroup
from recsys.sharding.communication import sends_int8
from recsys.sharding.hosts import local_size
from recsys.sharding.settings import ShardingSettings
from recsys.sharding.torchrec_plan import to_torchrec_plan
from recsys.units import BYTES_PER_GIB, MEGA

FLOPS_PER_WEIGHT = 2  # in a sample's forward pass through linear layers


def training_topology(settings: ShardingSettings, hosts: int, ranks_per_host: int) -> Topology:
    """The ranks of a training run: ``memory_gb`` for each, plus ``host_memory_gb`` next to a
    GPU."""
    found = settings.hardware
    own = found.model_copy(update={"hbm": found.hbm or found.ddr, "ssd": None})
    in_hosts = int(settings.host_memory_gb * BYTES_PER_GIB) * ranks_per_host
    return Topology(own, hosts, ranks_per_host, _capacity(settings, ranks_per_host), in_hosts, 0)


def needed_bytes(
    model: nn.Module,
    settings: ShardingSettings,
    hosts: int,
    ranks_per_host: int,
    rows: Sequence[Mapping[str, Any]],
) -> list[int]:
    """Predicted bytes of memory per rank for the plan ``rows`` of the unsharded ``model``: the
    process itself, tables, their state and gradients, buffers.

    With tables in files, only data_parallel tables count; 0 if there are none.
    """
    planned = planned_model(model, settings, hosts * ranks_per_host)
    if settings.table_memory == "file":
        rows = [row for row in rows if row["kind"] == "data_parallel"]
        if not rows:
            return [0] * hosts * ranks_per_host
        names = {row["table"] for row in rows}
        tables = [table for table in planned.tables if table.name in names]
        planned = planned.model_copy(update={"tables": tables})
    topology = training_topology(settings, hosts, ranks_per_host)
    plan = assess(planned, topology, ways_of(rows, ranks_per_host))
    return [sum(tiers) for tiers in plan.rank_bytes]


def _capacity(settings: ShardingSettings, ranks_per_host: int) -> int:
    """Bytes per rank: memory, or its share of the free space on the disk that holds the tables."""
    if settings.table_memory == "file":
        return shutil.disk_usage(settings.table_file_dir).free // ranks_per_host
    return int(settings.memory_gb * BYTES_PER_GIB)


def planned_model(model: nn.Module, settings: ShardingSettings, world_size: int) -> PlannedModel:
    """``model`` in the planner's form; only shapes are read. Mean-pooled tables are taken as
    lists."""
    collections = [
        module for module in model.modules() if isinstance(module, EmbeddingBagCollection)
    ]
    configs = list(chain.from_iterable(module.embedding_bag_configs() for module in collections))
    tables = {id(weight) for module in collections for weight in module.parameters()}
    dense = sum(prod(weight.shape) for weight in model.parameters() if id(weight) not in tables)
    communication = settings.communication
    planned = PlannedModel(
        batch_size=-(-settings.global_batch_size // world_size),
        table_optimizer=settings.table_optimizer,
        forward_comm=communication.forward,
        backward_comm=communication.backward,
        dense_parameters=dense,
        dense_mflops_per_sample=FLOPS_PER_WEIGHT * dense / MEGA,
        tables=[_group(config, settings) for config in configs],
    )
    if not sends_int8(communication):
        return planned
    return planned.model_copy(
        update={"kinds": [k for k in planned.allowed_kinds() if not SHARDINGS[k].rows]}
    )


def search(
    model: PlannedModel, topology: Topology, fixed: Mapping[str, Way] | None = None
) -> Plan | None:
    """The plan with the shortest predicted step among searches with all kinds together and with
    each kind alone, given ``fixed``.

    Each kind in use adds its own exchanges, a cost that the search over all kinds does not see.
    """
    kinds = model.allowed_kinds()
    subsets = [list(kinds), *([kind] for kind in kinds)]
    found = [
        find_plan(model.model_copy(update={"kinds": subset}), topology, fixed=fixed)
        for subset in subsets
    ]
    plans = [plan for plan in found if plan is not None]
    return min(plans, key=lambda plan: plan.step_ms) if plans else None


def predict_training(
    model: nn.Module, settings: ShardingSettings, world_size: int, rows: Sequence[Mapping[str, Any]]
) -> Plan:
    """Predicted time and memory of the engine's plan for the unsharded ``model``, with one of
    ``rows`` per table."""
    local = local_size(settings.ranks_per_host, world_size)
    topology = training_topology(settings, world_size // local, local)
    return assess(planned_model(model, settings, world_size), topology, ways_of(rows, local))


def collective_plan(
    model: nn.Module,
    settings: ShardingSettings,
    hosts: int,
    ranks_per_host: int,
    modules: Mapping[str, str],
    fixed: Sequence[Mapping[str, Any]] = (),
) -> ShardingPlan | None:
    """The plan that rank 0 finds, on every rank; None if none fits. Collective.

    Args:
        modules: path of the collection that contains each table.
        fixed: rows with table, kind and ranks for tables that are already placed.
    """
    topology = training_topology(settings, hosts, ranks_per_host)
    answer: list[Plan | None] = [None]
    if distributed.get_rank() == 0:
        planned = planned_model(model, settings, hosts * ranks_per_host)
        answer = [search(planned, topology, ways_of(fixed, ranks_per_host))]
    if distributed.get_world_size() > 1:
        distributed.broadcast_object_list(answer, src=0)
    plan = answer[0]
    return None if plan is None else to_torchrec_plan(plan, topology, modules)


def _group(config: EmbeddingBagConfig, settings: ShardingSettings) -> TableGroup:
    per_sample = settings.ids_per_list if config.pooling is PoolingType.MEAN else 1.0
    return TableGroup(
        name=config.name,
        rows=config.num_embeddings,
        dimension=config.embedding_dim,
        pooling=per_sample * len(config.feature_names),
        features=len(config.feature_names),
        dtype="fp16" if config.data_type is DataType.FP16 else "fp32",
    )
