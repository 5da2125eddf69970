"""Launching: one rank in this process, several from any thread."""

import threading
from typing import Any

import pytest
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
