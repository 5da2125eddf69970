"""Keep the memory that a step frees for the next one: fresh pages cost up to a quarter of a
step."""

import ctypes

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NONE = -1, 0


def keep_freed_memory() -> None:
    """Make glibc serve every block from its heap and leave that untrimmed; nothing where there is
    no glibc.

    By default a block over 32 MiB, as activations of large batches are, is mapped, zeroed and
    unmapped each time. It holds for the life of the process.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, NONE)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)


def return_freed_memory() -> None:
    """Give what the heap holds free back to the operating system, once."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
