"""Launching: one rank in this process, several from any thread."""

import ctypes
import resource
import threading
from typing import Any

import pytest
import torch
from torch import distributed

from recsys.config import InputError
from recsys.training.launch import run_on_ranks


def rank_and_value(value: int) -> tuple[int, int, int]:
    return distributed.get_rank(), distributed.get_world_size(), value


def refuse() -> None:
    raise InputError("wrong")


def test_one_rank_runs_here() -> None:
    assert run_on_ranks(rank_and_value, (7,), 1, 1) == [(0, 1, 7)]
    with pytest.raises(InputError, match="wrong"):
        run_on_ranks(refuse, (), 1, 1)
    assert not distributed.is_initialized()


def test_two_ranks_from_a_thread() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(run_on_ranks(rank_and_value, (7,), 2, 1)))
    thread.start()
    thread.join()
    assert results == [(0, 2, 7), (1, 2, 7)]


def pages_of_a_third_block() -> int:
    """Pages that the kernel hands out for a block of 256 MiB after others were freed.

    What the process keeps for itself may lie in the first one's place, so that the second does not fit there.
    """
    elements = 2**26
    for _ in range(2):
        torch.zeros(elements).add_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(elements).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
@pytest.mark.parametrize("world_size", [1, 2])
def test_freed_memory_is_used_again_without_new_pages(world_size: int) -> None:
    assert max(run_on_ranks(pages_of_a_third_block, (), world_size, 1)) < 50  # mapped anew: 128 huge or 65,536 small
