"""Many cases in one launch: to start ranks takes longer than most cases do."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from recsys.training.launch import run_on_ranks

Name = TypeVar("Name", bound=Hashable)
Case = tuple[int, tuple[Any, ...]]  # number of ranks, arguments


def each(function: Callable[..., Any], cases: Mapping[Name, tuple[Any, ...]]) -> dict[Name, Any]:
    """On every rank: ``function`` of each case's arguments, one case after the other."""
    found: dict[Name, Any] = {}
    for name, arguments in cases.items():
        try:
            found[name] = function(*arguments)
        except Exception as error:
            error.add_note(f"In the case {name}")
            raise
    return found


def run_cases(function: Callable[..., Any], cases: Mapping[Name, Case]) -> dict[Name, list[Any]]:
    """Each case's results by rank; all cases of a number of ranks in one launch."""
    found: dict[Name, list[Any]] = {}
    for world_size in sorted({ranks for ranks, _ in cases.values()}):
        arguments = {name: given for name, (ranks, given) in cases.items() if ranks == world_size}
        by_rank = run_on_ranks(each, (function, arguments), world_size, 1)
        found |= {name: [results[name] for results in by_rank] for name in arguments}
    return found
