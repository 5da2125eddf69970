"""Predict time and memory of a given plan, whoever made it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from recsys.planning.hardware import Topology
from recsys.planning.planner import Plan, PlannedTable, Way, plan_table, shard_geometry
from recsys.planning.table_costs import base_bytes, base_ms, kernel_options
from recsys.planning.tables import (
    SHARDINGS,
    PlannedModel,
    TableOptimizer,
    expand_tables,
    shard_bytes,
)

GIVEN = "given"


def ways_of(rows: Iterable[Mapping[str, Any]], ranks_per_host: int) -> dict[str, Way]:
    """The ways of an engine's plan, whose rows have table, kind and ranks, and the kernel if table
    rows are in host memory."""
    ways = {}
    for row in rows:
        kind, ranks = row["kind"], list(row["ranks"])
        sharding = SHARDINGS[kind]
        row_shards = ranks_per_host if sharding.rows else 1
        column_shards = len(ranks) // row_shards if sharding.columns else 1
        ways[row["table"]] = Way(
            kind, ranks, column_shards, row.get("kernel"), row.get("load_factor")
        )
    return ways


def assess(model: PlannedModel, topology: Topology, ways: Mapping[str, Way]) -> Plan:
    """Predicted milliseconds and bytes of the plan that splits each table of ``model`` according to
    ``ways``.

    A way without a kernel puts the table into the device's own memory. All shards of a table count
    alike, as in :mod:`recsys.planning.table_costs`; :func:`held_bytes` counts shorter last row
    shards exactly.

    Raises:
        KeyError: ``ways`` lacks a table.
    """
    tables = expand_tables(model)
    base = base_ms(model, topology, {way.kind for way in ways.values()})
    rank_bytes = np.tile(
        np.array(base_bytes(tables, model, topology), dtype=np.int64), (topology.world_size, 1)
    )
    rank_ms = np.full(topology.world_size, base)
    rows: list[PlannedTable] = []
    for table in tables:
        way = ways[table.name]
        kernels = kernel_options(table, way.kind, way.column_shards, model, topology)
        option = next(
            (o for o in kernels if (o.kernel, o.load_factor) == (way.kernel, way.load_factor)),
            kernels[0],
        )
        rank_bytes[way.ranks] += np.array(option.bytes, dtype=np.int64)
        rank_ms[way.ranks] += option.ms
        rows.append(plan_table(table, option, way.kind, way.ranks))
    held = [(int(hbm), int(ddr), int(ssd)) for hbm, ddr, ssd in rank_bytes]
    return Plan(rows, held, [float(ms) for ms in rank_ms], base, GIVEN, {}, topology.ranks_per_core)


def held_bytes(plan: Plan, optimizer: TableOptimizer, world_size: int) -> list[int]:
    """Exact bytes of weights and optimiser state on each rank, without buffers and gradients."""
    held = [0] * world_size
    for table in plan.tables:
        for rank, (_, (rows, columns)) in zip(table.ranks, shard_geometry(table), strict=True):
            held[rank] += shard_bytes(rows, columns, table.dtype, optimizer)
    return held
