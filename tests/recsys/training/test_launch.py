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


def fewest_new_pages() -> int:
    """Fewest pages that the kernel hands out for one of four blocks of 256 MiB, each freed before the next.

    Not for each: where something small now lies in a freed block's place, the next one does not fit there.
    """
    pages = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2**26).add_(1)
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(pages)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
@pytest.mark.parametrize("world_size", [1, 2])
def test_freed_memory_is_used_again_without_new_pages(world_size: int) -> None:
    assert max(run_on_ranks(fewest_new_pages, (), world_size, 1)) < 50  # mapped anew: 128 huge or 65,536 small
