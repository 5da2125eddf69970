"""How long a thread sleeps: what a rank waits for that no core could have helped with."""

from pathlib import Path
from time import perf_counter

# Ns on a core, ns in the queue for one, turns on a core
SCHEDULER = Path("/proc/thread-self/schedstat")


def asleep_seconds() -> float:
    """Seconds from a fixed moment in which this thread neither ran nor queued for a core; use the
    difference of two.

    A rank whose batches are in memory sleeps only in collectives: for bytes on their way, for ranks
    that come later.
    """
    ran_ns, queued_ns, _ = map(int, SCHEDULER.read_text().split())
    return perf_counter() - (ran_ns + queued_ns) / 1e9
