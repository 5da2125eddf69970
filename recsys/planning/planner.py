"""Choose how each table is sharded and where its shards go, for the shortest predicted step that
fits into memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recsys.planning.hardware import TIERS, Topology
from recsys.planning.placement import Array, Bins, Item, Placement, place
from recsys.planning.table_costs import Option, base_bytes, base_ms, kernel_options, options
from recsys.planning.tables import Kind, PlannedModel, Table, WeightType, expand_tables

# Largest shard allowed, relative to the mean load of a rank
PEAKS = (0.0, 0.5, 0.8, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 6.0, float("inf"))
QUICK_PEAKS = (float("inf"), 0.0)
# Share of the memory to plan for: packing whole shards leaves gaps
BUDGETS = (1.0, 0.98, 0.92, 0.8, 0.6)
PRICE_ROUNDS = 40
FIRST_PRICE = 0.01  # of the fastest total time, for a whole tier
LARGEST_STEP = 1.0  # in the logarithm of a price
REPAIRS_PER_TABLE = 4
MOST_FILLS = 200
MOST_RETRIES = 12
TINY = 1e-12


@dataclass(frozen=True)
class Way:
    """How one table is split. ``ranks`` has one rank per shard, in the order of
    :class:`PlannedTable`. ``kernel`` (None: the rows are in the device's own memory) and
    ``load_factor`` are used by :func:`recsys.planning.assess.assess`; a search chooses its own."""

    kind: Kind
    ranks: list[int]
    column_shards: int = 1
    kernel: str | None = None
    load_factor: float | None = None


@dataclass(frozen=True)
class PlannedTable:
    """One table's row in a plan; ``bytes`` and ``ms`` are sums over its shards.

    ``ranks`` has one rank per shard: column blocks in order and, within each, row shards in order.
    """

    table: str
    kind: Kind
    kernel: str
    load_factor: float | None
    column_shards: int
    ranks: list[int]
    bytes: int
    ms: float
    rows: int
    dimension: int
    dtype: WeightType


@dataclass(frozen=True)
class Plan:
    """How and where every table is sharded, and each rank's predicted memory and time.

    ``rank_bytes`` are (HBM, DDR, SSD) per rank, including what every rank holds in any plan.
    ``base_ms`` is every rank's time without tables. ``placements`` gives the largest load, in ms,
    that each placement heuristic reached (None: no room found); ``kept`` is the best.
    ``ranks_per_core`` is below 1 if every rank has its own cores.
    """

    tables: list[PlannedTable]
    rank_bytes: list[tuple[int, int, int]]
    rank_ms: list[float]
    base_ms: float
    kept: str
    placements: dict[str, float | None]
    ranks_per_core: float

    @property
    def step_ms(self) -> float:
        """Predicted time of a step: the slowest rank's time, or all ranks' work divided by the
        cores that they share, whichever is longer."""
        return max(*self.rank_ms, sum(self.rank_ms) / len(self.rank_ms) * self.ranks_per_core)

    @property
    def imbalance(self) -> float:
        """The slowest rank's time for tables over the mean rank's; 1 is perfect."""
        loads = [ms - self.base_ms for ms in self.rank_ms]
        mean = sum(loads) / len(loads)
        return max(loads) / mean if mean > 0 else 1.0


def find_plan(
    model: PlannedModel,
    topology: Topology,
    quick: bool = False,
    fixed: Mapping[str, Way] | None = None,
) -> Plan | None:
    """The best plan found, or None if none fits. The same input gives the same plan.

    Tables in ``fixed`` are split and placed as given; their time and bytes count on their ranks.

    The search puts a price on memory: for each table it takes the option with the least time plus
    priced memory, raises prices until memory suffices, then repairs and fills one table at a time.
    It does this for several limits on the largest single shard, since a long shard makes a slow
    rank, and places every choice with :func:`recsys.planning.placement.place`. ``quick`` stops at
    the first plan that fits.

    Example::

        >>> from recsys.planning.hardware import CPU
        >>> from recsys.planning.tables import TableGroup
        >>> tables = [TableGroup(name="ad", count=4, rows=1_000_000, dimension=64)]
        >>> model = PlannedModel(batch_size=512, table_optimizer="adagrad", tables=tables)
        >>> two_ranks = Topology(CPU, nodes=1, gpus=2, hbm=0, ddr=8 << 30, ssd=0)
        >>> plan = find_plan(model, two_ranks)
        >>> [(table.table, table.kind, table.ranks) for table in plan.tables[:2]]
        [('ad_0', 'table_wise', [0]), ('ad_1', 'table_wise', [1])]
    """
    tables = expand_tables(model)
    menu = _menu(tables, model, topology, fixed or {})
    if menu is None:
        return None
    best: _Candidate | None = None
    placements: dict[bytes, Placement | None] = {}
    for limit in _limits(menu, topology, quick):
        for budget in BUDGETS:
            found = _search(menu, limit, budget, topology, placements)
            if found is not None and (
                best is None or found.placed.largest < best.placed.largest - TINY
            ):
                best = found
            if quick and best is not None:
                return _describe(tables, menu, best, model, topology)
    return None if best is None else _describe(tables, menu, best, model, topology)


@dataclass(frozen=True)
class _Menu:
    """The options of every table as arrays [tables, options]; absent options are inf."""

    options: list[list[Option]]
    ms: Array  # over all ranks
    peak: Array  # of one shard
    use: Array  # [tiers, tables, options], as a share of the free memory of all ranks
    # Bytes of a rank (HBM) or node (DDR, SSD) after subtracting the base
    free: tuple[int, int, int]
    # Ranks of the tables that are already placed
    fixed: dict[int, list[int]] = field(default_factory=dict)


def _menu(
    tables: list[Table], model: PlannedModel, topology: Topology, fixed: Mapping[str, Way]
) -> _Menu | None:
    """The options of all tables; None if a table has no option that fits at all."""
    base = base_bytes(tables, model, topology)
    gpus = topology.gpus
    free = (topology.hbm - base[0], topology.ddr - base[1] * gpus, topology.ssd - base[2] * gpus)
    if min(free) < 0:
        return None

    @cache
    def fitting(alike: Table) -> list[Option]:
        return _undominated(
            [o for o in options(alike, model, topology) if _fits_alone(o, free, topology)], topology
        )

    def options_of(table: Table) -> list[Option]:
        way = fixed.get(table.name)
        if way is None:
            return fitting(replace(table, name=""))
        return kernel_options(table, way.kind, way.column_shards, model, topology)

    menu = [options_of(table) for table in tables]
    if not all(menu):
        return None
    width = max(len(found) for found in menu)
    ms = np.full((len(tables), width), np.inf)
    peak = np.full((len(tables), width), np.inf)
    use = np.full((len(TIERS), len(tables), width), np.inf)
    total = [
        max(free[0] * topology.world_size, 1),
        *(max(room * topology.nodes, 1) for room in free[1:]),
    ]
    for row, found in enumerate(menu):
        for column, one in enumerate(found):
            ranks = one.ranks_held(topology)
            ms[row, column], peak[row, column] = (
                one.ms * ranks,
                one.ms if one.spans != "all" else 0.0,
            )
            use[:, row, column] = [
                size * ranks / room for size, room in zip(one.bytes, total, strict=True)
            ]
    placed = {
        row: fixed[table.name].ranks for row, table in enumerate(tables) if table.name in fixed
    }
    return _Menu(menu, ms, peak, use, free, placed)


def _fits_alone(option: Option, free: tuple[int, int, int], topology: Topology) -> bool:
    shards_per_node = 1 if option.spans == "rank" else topology.gpus
    needs = (option.bytes[0], option.bytes[1] * shards_per_node, option.bytes[2] * shards_per_node)
    return all(need <= room for need, room in zip(needs, free, strict=True))


def _undominated(found: list[Option], topology: Topology) -> list[Option]:
    """The options that no other one beats or equals in time, largest shard and every kind of
    memory."""
    if not found:
        return []
    ranks = np.array([o.ranks_held(topology) for o in found], dtype=float)
    peaks = [o.ms if o.spans != "all" else 0.0 for o in found]
    costs = np.array([[o.ms, *o.bytes] for o in found]) * ranks[:, None]
    costs = np.hstack([costs, np.array(peaks)[:, None]])
    kept: list[int] = []
    for index in np.lexsort(costs.T[::-1]):  # an option can only be dominated by an earlier one
        if not any(bool((costs[other] <= costs[index]).all()) for other in kept):
            kept.append(int(index))
    return [found[index] for index in sorted(kept)]


@dataclass(frozen=True)
class _Candidate:
    choice: NDArray[np.int64]  # option of each table
    placed: Placement


def _limits(menu: _Menu, topology: Topology, quick: bool) -> list[float]:
    """Limits on the time of a single shard: multiples of a rank's mean load."""
    mean = float(menu.ms.min(axis=1).sum()) / topology.world_size
    return [mean * factor for factor in (QUICK_PEAKS if quick else PEAKS)]


def _search(
    menu: _Menu,
    limit: float,
    budget: float,
    topology: Topology,
    placements: dict[bytes, Placement | None],
) -> _Candidate | None:
    """Choose and place options; forbid those without room, and repeat. ``placements`` caches
    earlier placements."""
    allowed = menu.peak <= np.maximum(menu.peak.min(axis=1), limit)[:, None]
    for _ in range(MOST_RETRIES):
        choice = _choose(menu, allowed, budget)
        if choice is None:
            return None
        key = choice.tobytes()
        if key not in placements:
            placements[key] = _place_all(menu, choice, topology)
        placed = placements[key]
        if placed is None:
            return None
        if not placed.unplaced:
            return _Candidate(choice, placed)
        for row in placed.unplaced:
            _forbid(menu.options[row], int(choice[row]), allowed[row])
    return None


def _forbid(found: list[Option], index: int, allowed: NDArray[np.bool_]) -> None:
    """Forbid the option at ``index``, and those that need at least as much memory on as many
    ranks."""
    failed = found[index]
    for other, one in enumerate(found):
        larger = all(need >= least for need, least in zip(one.bytes, failed.bytes, strict=True))
        allowed[other] &= not (one.spans == failed.spans and one.blocks == failed.blocks and larger)


def _choose(menu: _Menu, allowed: NDArray[np.bool_], budget: float) -> NDArray[np.int64] | None:
    """The allowed options with the least total time that use at most ``budget`` of each tier."""
    ms = np.where(allowed, menu.ms, np.inf)
    rows = np.arange(len(ms))
    prices = np.full(len(TIERS), FIRST_PRICE * float(ms.min(axis=1).sum()))
    choice, least = ms.argmin(axis=1), (np.inf, np.inf)
    if not np.isfinite(ms.min(axis=1)).all():
        return None
    # Absent options cost infinite time
    use = np.where(np.isfinite(menu.use), menu.use, 0.0)
    for turn in range(PRICE_ROUNDS):
        priced = ms if turn == 0 else ms + np.tensordot(prices, use, 1)
        trial = priced.argmin(axis=1)
        used = use[:, rows, trial].sum(axis=1)
        rank = (float(np.maximum(used - budget, 0.0).sum()), float(ms[rows, trial].sum()))
        if rank < least:
            choice, least = trial, rank
        if turn == 0 and rank[0] == 0.0:
            return trial
        step = np.log(np.maximum(used, TINY) / budget).clip(-LARGEST_STEP, LARGEST_STEP)
        prices = prices * np.exp(step / (1 + turn / len(TIERS)) ** 0.5)
    return _fill(ms, use, _repair(ms, use, choice, budget), budget)


def _repair(
    ms: Array, use: Array, choice: NDArray[np.int64], budget: float
) -> NDArray[np.int64] | None:
    """Change one table at a time, losing the least time per byte gained, until all tiers fit."""
    rows, choice = np.arange(len(ms)), choice.copy()
    for _ in range(REPAIRS_PER_TABLE * len(ms)):
        used = use[:, rows, choice].sum(axis=1)
        over = float(np.maximum(used - budget, 0.0).sum())
        if over == 0.0:
            return choice
        after = used[:, None, None] - use[:, rows, choice][:, :, None] + use
        gain = over - np.maximum(after - budget, 0.0).sum(axis=0)
        lost = np.maximum(ms - ms[rows, choice][:, None], TINY)
        score = np.where(gain > TINY, lost / np.maximum(gain, TINY), np.inf)
        row, column = np.unravel_index(int(score.argmin()), score.shape)
        if not np.isfinite(score[row, column]):
            return None
        choice[row] = column
    return None


def _fill(
    ms: Array, use: Array, choice: NDArray[np.int64] | None, budget: float
) -> NDArray[np.int64] | None:
    """Spend the remaining memory one table at a time, gaining the most time per byte."""
    if choice is None:
        return None
    rows = np.arange(len(ms))
    for _ in range(MOST_FILLS):
        used = use[:, rows, choice].sum(axis=1)
        added = use - use[:, rows, choice][:, :, None]
        won = ms[rows, choice][:, None] - ms
        fits = ((used[:, None, None] + added) <= budget).all(axis=0) & (won > TINY)
        if not fits.any():
            break
        score = np.where(fits, won / np.maximum(added.max(axis=0), TINY), -np.inf)
        row, column = np.unravel_index(int(score.argmax()), score.shape)
        choice[row] = column
    return choice


def _place_all(menu: _Menu, choice: NDArray[np.int64], topology: Topology) -> Placement | None:
    """Place fixed shards first, then those on all ranks, then those that span a node, then single
    shards."""
    chosen = {row: menu.options[row][column] for row, column in enumerate(choice)}
    nodes, gpus = topology.nodes, topology.gpus
    everywhere = {row: list(range(nodes * gpus)) for row, o in chosen.items() if o.spans == "all"}
    where = everywhere | menu.fixed
    load, held = np.zeros(nodes * gpus), np.zeros((nodes * gpus, len(TIERS)))
    for key, ranks in where.items():
        load[ranks] += chosen[key].ms
        held[ranks] += chosen[key].bytes
    free = _free_ranks(menu.free, load, held, gpus)
    if min(float(room.min()) for room in free.room) < 0:
        return None
    to_place = {key: o for key, o in chosen.items() if key not in where}
    node_items = [
        Item(key, o.ms, (o.bytes[0], o.bytes[1] * gpus, o.bytes[2] * gpus), o.blocks)
        for key, o in to_place.items()
        if o.spans == "node"
    ]
    node_bins = _node_bins(free, gpus)
    on_nodes = place(node_items, node_bins)
    rank_items = [
        Item(key, o.ms, o.bytes, o.blocks) for key, o in to_place.items() if o.spans == "rank"
    ]
    on_ranks = place(rank_items, _rank_bins(free, node_bins, on_nodes.bins, gpus))
    for key, hosts in on_nodes.where.items():
        where[key] = [host * gpus + local for host in hosts for local in range(gpus)]
    unplaced = on_nodes.unplaced + on_ranks.unplaced
    return Placement(
        on_ranks.method, where | on_ranks.where, on_ranks.bins, unplaced, on_ranks.reached
    )


def _free_ranks(free: tuple[int, int, int], load: Array, held: Array, gpus: int) -> Bins:
    """A bin per rank, with ``held`` [ranks, tiers] bytes taken; HBM belongs to the rank, the rest
    to the node."""
    ranks = np.arange(len(load))
    of_node = ranks // gpus
    shared = [free[tier] - held[:, tier].reshape(-1, gpus).sum(axis=1) for tier in (1, 2)]
    return Bins(load, [free[0] - held[:, 0], *shared], [ranks, of_node, of_node])


def _node_bins(ranks: Bins, gpus: int) -> Bins:
    """A bin per node: a shard on all its ranks takes the time of the fullest rank and the room of
    the one with the least."""
    by_node = np.arange(len(ranks.load) // gpus)
    hbm = ranks.room[0].reshape(-1, gpus).min(axis=1)
    load = ranks.load.reshape(-1, gpus).max(axis=1)
    return Bins(load, [hbm, *ranks.room[1:]], [by_node] * len(TIERS))


def _rank_bins(ranks: Bins, before: Bins, after: Bins, gpus: int) -> Bins:
    """``ranks`` plus what was put on their nodes, whose bins were ``before``; exact if a node's
    ranks are alike."""
    lighter = np.repeat(before.load, gpus) - ranks.load
    roomier = ranks.room[0] - np.repeat(before.room[0], gpus)
    hbm = np.repeat(after.room[0], gpus) + roomier
    return Bins(np.repeat(after.load, gpus) - lighter, [hbm, *after.room[1:]], ranks.pool)


def _describe(
    tables: list[Table], menu: _Menu, best: _Candidate, model: PlannedModel, topology: Topology
) -> Plan:
    chosen, placed = (
        [menu.options[row][column] for row, column in enumerate(best.choice)],
        best.placed,
    )
    base = base_ms(model, topology, {one.kind for one in chosen})
    rank_bytes = np.tile(
        np.array(base_bytes(tables, model, topology), dtype=np.int64), (topology.world_size, 1)
    )
    rank_ms = np.full(topology.world_size, base)
    rows = []
    for key, (table, one) in enumerate(zip(tables, chosen, strict=True)):
        ranks = placed.where[key]
        rank_bytes[ranks] += np.array(one.bytes, dtype=np.int64)
        rank_ms[ranks] += one.ms
        rows.append(plan_table(table, one, one.kind, ranks))
    return Plan(
        tables=rows,
        rank_bytes=[(int(hbm), int(ddr), int(ssd)) for hbm, ddr, ssd in rank_bytes],
        rank_ms=[float(ms) for ms in rank_ms],
        base_ms=base,
        kept=placed.method,
        placements=placed.reached,
        ranks_per_core=topology.ranks_per_core,
    )


def plan_table(table: Table, option: Option, kind: Kind, ranks: list[int]) -> PlannedTable:
    """The row of ``table``, split by ``kind`` over ``ranks`` into shards with the costs of
    ``option``."""
    return PlannedTable(
        table=table.name,
        kind=kind,
        kernel=option.kernel,
        load_factor=option.load_factor,
        column_shards=table.dimension // option.columns,
        ranks=ranks,
        bytes=sum(option.bytes) * len(ranks),
        ms=option.ms * len(ranks),
        rows=table.rows,
        dimension=table.dimension,
        dtype=table.dtype,
    )


def shard_geometry(table: PlannedTable) -> list[tuple[list[int], list[int]]]:
    """(offset, size), each [row, column], of the shard on each of ``table.ranks``.

    Rows are split as in TorchRec: blocks of rows / shards, rounded up; the last blocks are shorter
    or empty.
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
