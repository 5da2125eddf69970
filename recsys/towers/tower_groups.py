"""Which hosts have which tower: groups of hosts, and the peers across them (DMT, arXiv 2403.00877,
section 3.1)."""

from dataclasses import dataclass

from torch import distributed
from torch.distributed import ProcessGroup
from torchrec.distributed.comm import intra_and_cross_node_pg

from recsys.sharding.hosts import hosts_of
from recsys.sharding.plan import spread_groups
from recsys.towers.tower_hosts import tower_ranks
from recsys.training.settings import TrainSettings


@dataclass(frozen=True)
class TowerGroups:
    """The ranks in groups of neighbouring hosts, each group with its own towers.

    Attributes:
        inside: process group of this rank's hosts, within which a tower's tables and modules stay.
        peers: process group of the ranks with the same position in each group of hosts, between
            which tower outputs travel. In the paper's terms (g % L, g // L), where L is the ranks
            of a group; its g % T is a misprint.
    """

    inside: ProcessGroup
    peers: ProcessGroup

    @property
    def count(self) -> int:
        """Number of groups of hosts."""
        return self.peers.size()

    @property
    def index(self) -> int:
        """This rank's group of hosts."""
        return self.peers.rank()

    @property
    def size(self) -> int:
        """Number of ranks in a group of hosts."""
        return self.inside.size()


def tower_groups(settings: TrainSettings, towers: int) -> TowerGroups:
    """The groups of hosts that ``settings`` asks for; collective.

    Raises:
        InputError: the ranks do not form whole hosts, the hosts do not form whole groups, or a
            group would have no tower.
    """
    with hosts_of(settings.ranks_per_host, settings.where("ranks_per_host")) as ranks_per_host:
        size = tower_ranks(
            distributed.get_world_size(),
            ranks_per_host,
            settings.hosts_per_tower,
            towers,
            settings.where("hosts_per_tower"),
        )
    with hosts_of(size):
        inside, peers = intra_and_cross_node_pg(backend=distributed.get_backend())
    assert inside is not None and peers is not None
    return TowerGroups(inside, peers)


def place_towers(towers: list[list[str]], sizes: dict[str, int], groups: int) -> list[list[int]]:
    """The towers of each group of hosts: largest first, each to the group with the fewest bytes.

    Args:
        towers: features of each tower.
        sizes: bytes of each feature's table, above 0, so that no group stays empty if there are
            enough towers.
        groups: number of groups of hosts.
    """
    group_of = spread_groups(towers, sizes, groups)
    return [
        [i for i, tower in enumerate(towers) if group_of[tower[0]] == group]
        for group in range(groups)
    ]
