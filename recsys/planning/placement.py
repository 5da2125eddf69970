"""Place shards on bins (ranks or nodes) so that the largest load is as small as memory allows."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
GREEDY = "greedy"
BY_MEMORY = "greedy by memory"
DIFFERENCING = "largest differencing"
MENDING_ROUNDS = 3


@dataclass(frozen=True)
class Item:
    """``blocks`` equal shards of one table, for as many different bins; ``need`` is the bytes of
    each, by tier."""

    key: int
    ms: float
    need: tuple[float, ...]
    blocks: int = 1


@dataclass
class Bins:
    """The load of each bin, and the free memory: bin b takes its tier-t bytes from
    room[t][pool[t][b]]."""

    load: Array  # [bins]
    room: list[Array]  # by tier: [pools]
    pool: list[Index]  # by tier: [bins]

    def copy(self) -> "Bins":
        """A copy to place items into; it shares the pools, which are never written."""
        return Bins(self.load.copy(), [free.copy() for free in self.room], self.pool)

    def fits(self, need: tuple[float, ...]) -> NDArray[np.bool_]:
        """Which bins have room for ``need``."""
        result = np.ones(len(self.load), dtype=bool)
        for bytes_needed, free, pool in zip(need, self.room, self.pool, strict=True):
            if bytes_needed:
                result &= (free >= bytes_needed)[pool]
        return result

    def add(self, item: Item, chosen: int) -> None:
        """Put one block of ``item`` into bin ``chosen``."""
        self.load[chosen] += item.ms
        for bytes_needed, free, pool in zip(item.need, self.room, self.pool, strict=True):
            free[pool[chosen]] -= bytes_needed


@dataclass(frozen=True)
class Placement:
    """The bins of each item by key, and the bins after placing.

    ``unplaced`` lists the items that found no room. ``reached`` has the largest load of each method
    tried; None for one that left items unplaced.
    """

    method: str
    where: dict[int, list[int]]
    bins: Bins
    unplaced: list[int]
    reached: dict[str, float | None] = field(default_factory=dict)

    @property
    def largest(self) -> float:
        """The load of the fullest bin."""
        return float(self.bins.load.max())


def place(items: list[Item], bins: Bins) -> Placement:
    """The better of greedy and largest differencing: fewest unplaced items, then smallest largest
    load.

    Ties go to greedy. The same items and bins give the same placement.
    """
    found = {GREEDY: greedy(items, bins), DIFFERENCING: largest_differencing(items, bins)}
    if found[GREEDY].unplaced:
        found[BY_MEMORY] = greedy(items, bins, by_memory=True)
    best = min(found.values(), key=lambda one: (len(one.unplaced), one.largest))
    reached = {name: None if one.unplaced else one.largest for name, one in found.items()}
    return replace(best, reached=reached)


def greedy(items: list[Item], bins: Bins, by_memory: bool = False) -> Placement:
    """Longest processing time first: each item, largest first, goes to the least loaded bin with
    room.

    With ``by_memory``, items that need most memory come first, which finds room more often.
    """
    bins = bins.copy()
    size = _share_of_memory(bins) if by_memory else _load
    where: dict[int, list[int]] = {}
    unplaced = _add_in_turn(sorted(items, key=lambda one: (-size(one), one.key)), bins, where)
    return Placement(BY_MEMORY if by_memory else GREEDY, where, bins, unplaced)


def largest_differencing(items: list[Item], bins: Bins) -> Placement:
    """Karmarkar and Karp's differencing for many bins, with repairs where memory is short.

    Every item starts as its own partition, and the present loads as another. The two partitions
    with the widest spread are merged, fullest bin onto emptiest, until one is left. Items without
    room in their bin are then placed greedily, and the others are differenced again on top of them.
    """
    size = _share_of_memory(bins)
    pinned: set[int] = set()
    for last in (False,) * MENDING_ROUNDS + (True,):
        trial, where = bins.copy(), {}
        unplaced = _add_in_turn([item for item in items if item.key in pinned], trial, where)
        others = sorted(
            (item for item in items if item.key not in pinned),
            key=lambda one: (-size(one), one.key),
        )
        wanted = _difference(others, trial.load)
        left_over = []
        for item in others:
            if _add_at(item, wanted[item.key], trial):
                where[item.key] = wanted[item.key]
            else:
                left_over.append(item)
        if last or not left_over:
            return Placement(
                DIFFERENCING, where, trial, unplaced + _add_in_turn(left_over, trial, where)
            )
        pinned |= {item.key for item in left_over}
    raise AssertionError("the last round returns")


@dataclass(frozen=True)
class _Partition:
    """The loads of one merge tree, largest first; ``order`` says which bin of the merge each one
    was."""

    loads: Array
    order: Index
    item: Item | None = None
    parts: "tuple[_Partition, _Partition] | None" = None


def _difference(items: list[Item], base: Array) -> dict[int, list[int]]:
    """The bins of each item by Karmarkar-Karp, ignoring memory."""
    order = np.argsort(-base, kind="stable")
    leaves = [_Partition(base[order], order)] + [_leaf(item, len(base)) for item in items]
    heap = [
        (-float(leaf.loads[0] - leaf.loads[-1]), index, leaf) for index, leaf in enumerate(leaves)
    ]
    heapq.heapify(heap)
    count = len(heap)
    while len(heap) > 1:
        merged = _merge(heapq.heappop(heap)[2], heapq.heappop(heap)[2])
        heapq.heappush(heap, (-float(merged.loads[0] - merged.loads[-1]), count, merged))
        count += 1
    return _unfold(heap[0][2])


def _leaf(item: Item, bins: int) -> _Partition:
    loads = np.zeros(bins)
    loads[: item.blocks] = item.ms
    return _Partition(loads, np.arange(bins), item)


def _merge(first: _Partition, second: _Partition) -> _Partition:
    loads = first.loads + second.loads[::-1]
    order = np.argsort(-loads, kind="stable")
    return _Partition(loads[order], order, parts=(first, second))


def _unfold(root: _Partition) -> dict[int, list[int]]:
    """Walk down the merges to find which real bin each part's n-th fullest bin became."""
    labels: dict[int, Index] = {}
    real = np.zeros(0, dtype=np.int64)
    stack = [(root, np.arange(len(root.loads)))]
    while stack:
        node, bins = stack.pop()  # bins[n]: label of the node's n-th fullest bin
        if node.parts is not None:
            before = np.empty_like(bins)
            before[node.order] = bins
            stack += [(node.parts[0], before), (node.parts[1], before[::-1])]
        elif node.item is not None:
            labels[node.item.key] = bins[: node.item.blocks]
        else:
            real = np.empty_like(bins)
            real[bins] = node.order
    return {key: [int(rank) for rank in real[bins]] for key, bins in labels.items()}


def _add_at(item: Item, chosen: list[int], bins: Bins) -> bool:
    """Put the blocks into these bins if all of them have room; returns whether they had."""
    trial = bins.copy() if item.blocks > 1 else bins
    for one in chosen:
        if not trial.fits(item.need)[one]:
            return False
        trial.add(item, one)
    bins.load, bins.room = trial.load, trial.room
    return True


def _add_in_turn(items: list[Item], bins: Bins, where: dict[int, list[int]]) -> list[int]:
    """Assign each item to the least loaded bins with room, written to ``where``; returns the keys
    without room."""
    unplaced = []
    for item in items:
        trial = bins.copy() if item.blocks > 1 else bins
        chosen: list[int] = []
        for _ in range(item.blocks):
            load = np.where(trial.fits(item.need), trial.load, np.inf)
            load[chosen] = np.inf
            chosen.append(int(np.argmin(load)))
            if not np.isfinite(load[chosen[-1]]):
                unplaced.append(item.key)
                break
            trial.add(item, chosen[-1])
        else:
            bins.load, bins.room = trial.load, trial.room
            where[item.key] = chosen
    return unplaced


def _load(item: Item) -> float:
    return item.ms


def _share_of_memory(bins: Bins) -> Callable[[Item], float]:
    """The size of an item: its largest share of a tier's free memory."""
    free = [max(float(room.sum()), 1.0) for room in bins.room]
    return lambda item: max(need / room for need, room in zip(item.need, free, strict=True))
