"""Which ranks share a host, for TorchRec's hierarchical kinds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from recsys.config import InputError
from recsys.upstream import forget_groups_of_other_hosts

LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"


def local_size(ranks_per_host: int | None, world_size: int) -> int:
    """Ranks per host: ``ranks_per_host``, else LOCAL_WORLD_SIZE, else all ranks."""
    return ranks_per_host or min(int(os.environ.get(LOCAL_WORLD_SIZE) or world_size), world_size)


@contextmanager
def hosts_of(ranks_per_host: int | None, where: str = "ranks_per_host") -> Iterator[int]:
    """Within the block, shard with hosts of ``ranks_per_host`` ranks (None: keep LOCAL_WORLD_SIZE);
    yields that number.

    TorchRec keeps the process groups of its first hierarchical table for good; those of another
    process group or of other hosts are dropped here. Collective, because creating groups is.
    ``where`` is where the user finds the number.

    Raises:
        InputError: the ranks do not form whole hosts.
    """
    world_size, before = distributed.get_world_size(), os.environ.get(LOCAL_WORLD_SIZE)
    local = local_size(ranks_per_host, world_size)
    if world_size % local:
        raise InputError(
            f"{where}: {world_size} ranks do not fill whole hosts of {local} (ranks_per_host or "
            f"{LOCAL_WORLD_SIZE}); use a divisor of {world_size}"
        )
    os.environ[LOCAL_WORLD_SIZE] = str(local)
    forget_groups_of_other_hosts(local)
    try:
        yield local
    finally:
        if before is None:
            del os.environ[LOCAL_WORLD_SIZE]
        else:
            os.environ[LOCAL_WORLD_SIZE] = before
