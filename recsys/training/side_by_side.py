"""Train several models in parallel: each rank trains complete models, in its own process group."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import distributed

from recsys.training import ranks
from recsys.training.launch import launch
from recsys.training.launch_settings import LaunchSettings
from recsys.training.rank_process import join_group
from recsys.upstream import HashStore


def launch_side_by_side(
    function: Callable[..., dict[str, Any]],
    items: Sequence[Any],
    costs: Sequence[float],
    arguments: tuple[Any, ...],
    settings: LaunchSettings,
) -> dict[str, Any]:
    """Call ``function(own items, shows progress, *arguments)`` on each rank separately, as rank 0
    of 1.

    Small models lose more to collectives than they gain by sharing a batch. As with
    :func:`recsys.training.launch.launch`, all ranks start again after one is lost.

    Args:
        costs: cost of each item, in any unit; ranks get about the same total.
        settings: settings for a single node.

    Returns:
        The results of all calls, in one dictionary.

    Raises:
        InputError, LostRankError: as ``launch``.
    """
    given = (function, list(items), list(costs), arguments, settings)
    found: dict[str, Any] = {}
    for one in launch(_on_this_rank, given, settings):
        found |= one
    return found


def share_out(costs: Sequence[float], ranks_count: int) -> list[list[int]]:
    """Indices into ``costs`` by rank: costliest first, each to the rank with the least so far."""
    shares: list[list[int]] = [[] for _ in range(ranks_count)]
    totals = [0.0] * ranks_count
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        least = totals.index(min(totals))
        totals[least] += costs[place]
        shares[least].append(place)
    return [sorted(share) for share in shares]


def _on_this_rank(
    function: Callable[..., dict[str, Any]],
    items: list[Any],
    costs: list[float],
    arguments: tuple[Any, ...],
    settings: LaunchSettings,
) -> dict[str, Any]:
    rank, count = ranks.rank(), ranks.world_size()
    own = [items[place] for place in share_out(costs, count)[rank]]
    if count > 1:
        distributed.barrier()  # every rank has found the others before the group ends
        distributed.destroy_process_group()
        join_group(settings, HashStore(), 0, 1)
    return function(own, rank == 0, *arguments)
