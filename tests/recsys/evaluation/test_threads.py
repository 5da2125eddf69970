"""A comparison's threads have the cores for themselves."""

import os

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from recsys.evaluation.threads import threads


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_blas_has_one_thread_meanwhile() -> None:
    assert np.ones(1) @ np.ones(1) == 1  # numpy's BLAS is loaded
    with threadpool_limits(2, "blas"):
        with threads() as pool:
            assert pool._max_workers == os.cpu_count()
            assert blas_threads() == {1}
        assert blas_threads() == {2}
