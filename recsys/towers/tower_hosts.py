"""What the tower transform requires of hosts and sharding; needs no PyTorch."""

from recsys.config import InputError
from recsys.planning.tables import SHARDINGS, Kind
from recsys.sharding.settings import Sharding
from recsys.training.settings import TrainSettings

# Inside a tower's hosts there is only one level of ranks, so kinds within a host and over all ranks
# are the same.
KINDS_INSIDE: dict[Sharding, Kind] = {
    "planner": "table_wise",
    **{kind: split.inside for kind, split in SHARDINGS.items() if split.inside is not None},
}


def tower_ranks(
    world_size: int,
    ranks_per_host: int,
    hosts_per_tower: int,
    towers: int,
    where: str = "hosts_per_tower",
) -> int:
    """Number of ranks on the hosts of a tower; ``where`` is where the user finds
    ``hosts_per_tower``.

    Raises:
        InputError: the hosts do not divide into groups of ``hosts_per_tower``, or a group would
            have no tower.
    """
    hosts = world_size // ranks_per_host
    layout = f"{world_size} ranks are {hosts} hosts of {ranks_per_host}"
    if hosts % hosts_per_tower:
        raise InputError(
            f"{where}: {hosts_per_tower} hosts per tower: {layout}; use a divisor of {hosts}, or "
            "change world_size or ranks_per_host"
        )
    groups = hosts // hosts_per_tower
    if towers < groups:
        raise InputError(
            f"{where}: {layout}, {hosts_per_tower} hosts per tower: the partition's {towers} "
            f"towers leave {groups - towers} without one; raise hosts_per_tower, or make at least "
            f"{groups} towers"
        )
    return ranks_per_host * hosts_per_tower


def check_kinds_inside(settings: TrainSettings) -> None:
    """Check that tables are split in ways that stay inside a tower's hosts.

    Raises:
        InputError: one is not.
    """
    chosen = {f"table_sharding.{table}": kind for table, kind in settings.table_sharding.items()}
    for key, kind in {"sharding": settings.sharding, **chosen}.items():
        if kind not in KINDS_INSIDE:
            raise InputError(
                f"{settings.where(key)}: {kind} does not stay inside a tower's hosts; choose one "
                f"of {', '.join(KINDS_INSIDE)}, or false ({settings.where('tower_transform')})"
            )
