"""Launching: one rank in this process, several from any thread."""

import ctypes
import resource
import threading
from typing import Any

import pytest
import torch
from torch import distributed

from recsys.config import InputError
from recsys.training.launch import launch, run_on_ranks
from recsys.training.settings import TrainSettings


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
    thread = threading.Thread(
        target=lambda: results.extend(run_on_ranks(rank_and_value, (7,), 2, 1))
    )
    thread.start()
    thread.join()
    assert results == [(0, 2, 7), (1, 2, 7)]


def seconds_until_a_collective_fails() -> float:
    world = distributed.group.WORLD
    assert world is not None
    return world._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def test_a_collective_waits_until_the_hung_rank_has_been_found() -> None:
    """The watch over ranks ends and names the hung one after ``rank_timeout_s``."""
    settings = TrainSettings(world_size=2, rank_timeout_s=50)
    assert launch(seconds_until_a_collective_fails, (), settings) == [100.0, 100.0]


def new_pages_of_a_step() -> float:
    """Share of a step's pages that the kernel hands out again, after others; eight blocks of 48 MiB
    at a time."""
    page_bytes, elements, blocks = 4096, 12 * 2**20, 8
    shares = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [torch.zeros(elements).add_(1) for _ in range(blocks)]
        del held
        shares.append(
            (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            / (blocks * elements * 4 / page_bytes)
        )
    return min(shares[1:])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
@pytest.mark.parametrize("world_size", [1, 2])
def test_freed_memory_is_used_again_without_new_pages(world_size: int) -> None:
    assert max(run_on_ranks(new_pages_of_a_step, (), world_size, 1)) < 0.2  # all of them without
