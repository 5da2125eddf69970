"""Keep memory freed by a step for the next one: fresh pages cost up to a quarter of a step."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER, NONE, MANY = -1, 0, 65536
LARGE_BLOCK = 32 * 2**20  # bytes; the largest threshold that glibc accepts
BLOCK_OF_ROWS = 4 * 2**20  # bytes; less than the blocks in which initial rows are drawn

_keeps = False


def keep_freed_memory() -> None:
    """Make glibc serve every block from its heap without trimming it; does nothing without glibc.

    By default a block over 32 MiB, such as activations of large batches, is mapped, zeroed and
    unmapped each time. The change lasts for the life of the process.
    """
    global _keeps
    _keeps = True
    _set(M_MMAP_MAX, NONE)
    _set(M_TRIM_THRESHOLD, NEVER)


@contextmanager
def mapped_blocks() -> Iterator[None]:
    """Map the blocks allocated in this context, so that freeing them leaves no holes in the heap:
    for tables, and the blocks in which their initial rows are drawn."""
    _set(M_MMAP_THRESHOLD, BLOCK_OF_ROWS)
    _set(M_MMAP_MAX, MANY)
    try:
        yield
    finally:
        _set(M_MMAP_THRESHOLD, LARGE_BLOCK)
        if _keeps:
            keep_freed_memory()


def map_large_blocks() -> None:
    """Undo :func:`keep_freed_memory` for blocks over LARGE_BLOCK bytes.

    A gradient as large as a table, allocated and freed in every step, leaves holes in the heap into
    which the next one does not fit; after some steps the process holds it three times.
    """
    _set(M_MMAP_MAX, MANY)


def return_freed_memory() -> None:
    """Return the heap's free memory to the operating system, once."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _set(parameter: int, value: int) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)
