"""The cost of each way to shard a table: bytes by memory tier and milliseconds, per shard and in
total.

Costs are bytes divided by bandwidths, following the cost functions of Neo (arXiv 2104.05158,
section 4). Look-ups move rows through the tier that holds them. Pooled outputs move by all-to-all
(whole tables and column shards) or by reduce-scatter (row shards), forward and backward.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from recsys.planning.hardware import TIERS, Tier, Topology
from recsys.planning.tables import (
    BYTES_OF,
    DENSE_STATE_WORDS,
    SHARDINGS,
    SMALLEST_COLUMN_SHARD,
    Kind,
    PlannedModel,
    Table,
    state_bytes,
)
from recsys.units import FLOAT_BYTES, GIGA, MEGA, MS_PER_SECOND

HBM, DDR, SSD = range(len(TIERS))
ID_BYTES = 8  # int64
LENGTH_BYTES = 8
ROW_PASSES = 3  # forward reads a row; the fused backward reads and writes it
STATE_PASSES = 2  # read and written
MISS_PASSES = 2  # a missed row is read in, a changed one written out
OUTPUT_COPIES = 2  # the pooled output and its gradient
# This batch and the prefetched one; keys and values of the sort in the backward pass, in and out
ID_BUFFERS = 2 + 4
# Dense gradient: zero, write; flatten (2), average (2), copy back (2); square (2), mean, update (3)
GRADIENT_PASSES = 14
CACHE_SLOT_BYTES = 16  # FBGEMM: lxu_cache_state and lxu_state, int64 each
CACHE_MAP_BYTES = 4  # FBGEMM: cache_index_table_map, int32 per row of the table
EXCHANGES_PER_KIND = 5  # TorchRec: sizes, lengths, ids, pooled outputs, their gradients


@dataclass(frozen=True)
class Option:
    """One way to shard a table, and the cost of each of its equal shards.

    A shard of an option that ``spans`` a node stands for ``gpus`` shards, one per rank of a node;
    one that spans all stands for a shard on every rank. ``blocks`` shards must be placed, on
    different ranks (or nodes). Bytes are per rank.
    """

    kind: Kind
    kernel: str
    load_factor: float | None
    spans: str  # rank | node | all
    blocks: int
    rows: int
    columns: int
    ms: float
    bytes: tuple[int, int, int]  # HBM, DDR, SSD

    def ranks_held(self, topology: Topology) -> int:
        """Number of ranks that hold a shard."""
        return (
            self.blocks * {"rank": 1, "node": topology.gpus, "all": topology.world_size}[self.spans]
        )


@dataclass(frozen=True)
class _Split:
    """The geometry of a kind: what one rank looks up, and for how many samples it makes outputs."""

    kind: Kind
    spans: str
    blocks: int
    rows: int
    columns: int
    ids: float  # looked up by one rank
    samples: int  # pooled by one rank, in full or in part, per sample and feature


@dataclass(frozen=True)
class _Kernel:
    name: str
    tier: int  # where the table lives
    load_factor: float | None = None


def options(table: Table, model: PlannedModel, topology: Topology) -> list[Option]:
    """Every way to shard ``table`` that ``model`` and the machine allow, in a fixed order."""
    return [
        option
        for split in _splits(table, model, topology)
        for option in _priced(table, split, model, topology)
    ]


def kernel_options(
    table: Table, kind: Kind, column_shards: int, model: PlannedModel, topology: Topology
) -> list[Option]:
    """``kind`` with every kernel that the machine allows; the first keeps the whole shard in the
    device's own memory."""
    return _priced(table, _split(table, kind, column_shards, model, topology), model, topology)


def base_bytes(
    tables: list[Table], model: PlannedModel, topology: Topology
) -> tuple[int, int, int]:
    """Bytes on each rank in any plan: dense part, pooled embeddings of its batch, reserve."""
    dense = model.dense_parameters * FLOAT_BYTES * (2 + DENSE_STATE_WORDS[model.dense_optimizer])
    width = sum(table.dimension * table.features for table in tables)
    pooled = model.batch_size * width * FLOAT_BYTES * OUTPUT_COPIES
    result = [0, 0, 0]
    result[topology.hardware.device_tier] = (
        dense + pooled + round(topology.hardware.reserved_gb * GIGA)
    )
    return result[HBM], result[DDR], result[SSD]


def base_ms(model: PlannedModel, topology: Topology, kinds: Collection[Kind]) -> float:
    """Milliseconds of each rank's step without tables: dense compute, its all-reduce, latencies.

    TorchRec exchanges the tables of each kind in separate collectives; replicated tables need none.
    """
    hardware = topology.hardware
    exchanged = len(set(kinds) - {"data_parallel"})
    compute = (
        3
        * model.dense_mflops_per_sample
        * MEGA
        * model.batch_size
        / (hardware.dense_tflops * MEGA**2)
        * MS_PER_SECOND
    )
    collectives = 1 + EXCHANGES_PER_KIND * exchanged if topology.world_size > 1 else 0
    return (
        compute
        + hardware.step_ms
        + collectives * hardware.collective_ms
        + _all_reduce_ms(model.dense_parameters * FLOAT_BYTES, topology)
    )


def hit_rate(rows: int, skew: float, load_factor: float) -> float:
    """Share of look-ups answered by a cache with the hottest ``load_factor`` of the rows (power-law
    ids)."""
    kept = min(load_factor, 1.0) * rows
    return min(_power_sum(kept, skew) / _power_sum(rows, skew), 1.0)


def column_counts(dimension: int, most: int) -> list[int]:
    """Numbers of equal column shards, powers of two, that FBGEMM's kernels accept."""
    counts = [2**power for power in range(1, most.bit_length()) if 2**power <= most]
    return [count for count in counts if dimension % (count * SMALLEST_COLUMN_SHARD) == 0]


def _splits(table: Table, model: PlannedModel, topology: Topology) -> list[_Split]:
    gpus, world = topology.gpus, topology.world_size
    found: list[_Split] = []
    for kind in model.allowed_kinds():
        counts = [1]
        if kind == "column_wise":
            counts = column_counts(table.dimension, world)
        elif kind == "table_column_wise":
            counts = (
                [gpus]
                if topology.nodes > 1 and gpus in column_counts(table.dimension, gpus)
                else []
            )
        elif kind == "grid_shard":
            counts = column_counts(table.dimension, topology.nodes)
        elif (kind == "row_wise" and world == 1) or (
            kind == "table_row_wise" and topology.nodes == 1
        ):
            counts = []  # nothing to split
        found += [_split(table, kind, count, model, topology) for count in counts]
    return found


def _split(
    table: Table, kind: Kind, column_shards: int, model: PlannedModel, topology: Topology
) -> _Split:
    gpus, world, samples = (
        topology.gpus,
        topology.world_size,
        model.batch_size * topology.world_size,
    )
    ids, rows, columns = samples * table.pooling, table.rows, table.dimension // column_shards
    samples *= table.features
    sharding, blocks = SHARDINGS[kind], column_shards
    if kind == "data_parallel":
        ids, samples = ids / world, samples // world
    elif sharding.rows:
        row_shards = world if sharding.spans == "all" else gpus
        ids, rows = ids / row_shards, -(-rows // row_shards)
    elif sharding.spans == "node":  # its single block has a column shard on each rank
        blocks = 1
    return _Split(kind, sharding.spans, blocks, rows, columns, ids, samples)


def _kernels(model: PlannedModel, topology: Topology) -> list[_Kernel]:
    hardware = topology.hardware
    found = [_Kernel("fused", hardware.device_tier)]
    if hardware.device == "cpu":
        return found
    factors = sorted(model.load_factors)
    if topology.ddr:
        found.append(_Kernel("fused_uvm", DDR))
        found += [_Kernel("fused_uvm_caching", DDR, factor) for factor in factors]
    if topology.ssd and hardware.ssd:
        found += [_Kernel("key_value", SSD, factor) for factor in factors]
    return found


def _priced(table: Table, split: _Split, model: PlannedModel, topology: Topology) -> list[Option]:
    """``split`` with every kernel."""
    kernels = [_Kernel("dense", topology.hardware.device_tier)]
    if split.kind != "data_parallel":
        kernels = _kernels(model, topology)
    return [_price(table, split, kernel, model, topology) for kernel in kernels]


def _price(
    table: Table, split: _Split, kernel: _Kernel, model: PlannedModel, topology: Topology
) -> Option:
    return Option(
        kind=split.kind,
        kernel=kernel.name,
        load_factor=kernel.load_factor,
        spans=split.spans,
        blocks=split.blocks,
        rows=split.rows,
        columns=split.columns,
        ms=_compute_ms(table, split, kernel, model, topology)
        + _communication_ms(table, split, model, topology),
        bytes=_shard_bytes(table, split, kernel, model, topology),
    )


def _shard_bytes(
    table: Table, split: _Split, kernel: _Kernel, model: PlannedModel, topology: Topology
) -> tuple[int, int, int]:
    """Bytes of one shard by tier: weights, optimiser state, cache, buffers of ids and outputs."""
    element = BYTES_OF[table.dtype]
    weights = split.rows * split.columns * element
    state = state_bytes(model.table_optimizer, split.rows, split.columns)
    result = [0, 0, 0]
    result[kernel.tier] += weights
    if kernel.name == "dense":
        # The gradient of the whole table
        result[kernel.tier] += split.rows * split.columns * FLOAT_BYTES
    result[HBM if kernel.name == "key_value" else kernel.tier] += (
        state  # SSD kernels keep it on the device
    )
    if kernel.load_factor is not None:
        slots = math.ceil(split.rows * kernel.load_factor)
        result[HBM] += slots * (split.columns * element + CACHE_SLOT_BYTES)
        result[HBM] += split.rows * CACHE_MAP_BYTES if kernel.name == "fused_uvm_caching" else 0
    ids = split.ids * ID_BYTES * ID_BUFFERS + split.samples * LENGTH_BYTES
    outputs = split.samples * split.columns * FLOAT_BYTES * OUTPUT_COPIES
    result[topology.hardware.device_tier] += math.ceil(ids) + outputs
    return result[HBM], result[DDR], result[SSD]


def _compute_ms(
    table: Table, split: _Split, kernel: _Kernel, model: PlannedModel, topology: Topology
) -> float:
    """Look-up and fused update of one shard: bytes moved in each tier over its bandwidth."""
    hardware = topology.hardware
    device = _known(hardware.tier(hardware.device_tier))
    home = _known(hardware.tier(kernel.tier))
    row = split.columns * BYTES_OF[table.dtype]
    state = state_bytes(model.table_optimizer, 1, split.columns)
    outputs = split.samples * split.columns * FLOAT_BYTES * OUTPUT_COPIES / (device.gb_s * GIGA)
    if kernel.load_factor is None:
        seconds = split.ids * (
            ROW_PASSES * _access(row, home) + STATE_PASSES * _access(state, home)
        )
    else:
        misses = 1.0 - hit_rate(split.rows, table.skew, kernel.load_factor)
        missed = split.ids * misses * MISS_PASSES * _access(row, home)
        hits = split.ids * ROW_PASSES * _access(row, device)
        where = device if kernel.name == "key_value" else home
        seconds = missed + hits + split.ids * STATE_PASSES * _access(state, where)
    if kernel.name == "dense":
        seconds += GRADIENT_PASSES * split.rows * split.columns * FLOAT_BYTES / (device.gb_s * GIGA)
    return (seconds + outputs) * MS_PER_SECOND + hardware.shard_ms


def _communication_ms(
    table: Table, split: _Split, model: PlannedModel, topology: Topology
) -> float:
    """Communication of one shard: ids in, pooled outputs out, gradients back."""
    if split.kind == "data_parallel":
        return _all_reduce_ms(split.rows * split.columns * FLOAT_BYTES, topology)
    ids = _all_to_all_ms(split.ids * ID_BYTES + split.samples * LENGTH_BYTES, topology)
    width = BYTES_OF[model.forward_comm] + BYTES_OF[model.backward_comm]
    outputs = split.samples * split.columns * width
    if not SHARDINGS[split.kind].rows:
        return ids + _all_to_all_ms(outputs, topology)
    if split.spans == "all":
        return ids + _reduce_scatter_ms(outputs, topology)
    return ids + _node_reduce_ms(outputs, topology)


def _all_to_all_ms(volume: float, topology: Topology) -> float:
    """Time to send ``volume`` bytes from one rank to all ranks, including itself."""
    world, gpus, hardware = topology.world_size, topology.gpus, topology.hardware
    inside, outside = (gpus - 1) / world, (world - gpus) / world
    return (
        volume
        * (inside / hardware.intra_gb_s + outside / hardware.cross_gb_s)
        / GIGA
        * MS_PER_SECOND
    )


def _reduce_scatter_ms(volume: float, topology: Topology) -> float:
    world = topology.world_size
    return volume * (world - 1) / world / (_reduce_gb_s(topology) * GIGA) * MS_PER_SECOND


def _node_reduce_ms(volume: float, topology: Topology) -> float:
    """Time of a reduce-scatter inside the node, then an all-to-all of the shares between nodes."""
    gpus, nodes, hardware = topology.gpus, topology.nodes, topology.hardware
    inside = volume * (gpus - 1) / gpus / hardware.intra_gb_s
    outside = volume / gpus * (nodes - 1) / nodes / hardware.cross_gb_s
    return (inside + outside) / GIGA * MS_PER_SECOND


def _all_reduce_ms(volume: float, topology: Topology) -> float:
    return 2 * _reduce_scatter_ms(volume, topology)


def _reduce_gb_s(topology: Topology) -> float:
    return topology.hardware.reduce_gb_s if topology.nodes > 1 else topology.hardware.intra_gb_s


def _access(size: int, tier: Tier) -> float:
    """Seconds to access ``size`` bytes at a random position in a tier."""
    return math.ceil(size / tier.access_bytes) * tier.access_bytes / (tier.gb_s * GIGA)


def _known(tier: Tier | None) -> Tier:
    assert tier is not None
    return tier


@cache
def _power_sum(count: float, skew: float) -> float:
    """The sum of k^-skew over k = 1..count, approximated by an integral."""
    low, high = 0.5, count + 0.5
    if math.isclose(skew, 1.0):
        return math.log(high / low)
    return (high ** (1 - skew) - low ** (1 - skew)) / (1 - skew)
