"""The threads that a comparison runs on."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as there are cores.

    BLAS has one thread meanwhile: its own would spin beside these, at the price of twice the
    processor time on idle cores and of eight times on busy ones.
    """
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        yield pool
