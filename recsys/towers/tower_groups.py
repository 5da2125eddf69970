"""Which hosts hold which tower: groups of hosts, and the peers across them (DMT, arXiv 2403.00877,
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
    """The ranks as groups of neighbouring hosts, each with towers of its own.

    Attributes:
        inside: process group of this rank's hosts; the tables and modules of a tower stay in it.
        peers: the ranks of equal place in each group of hosts; tower outputs travel in it. The
            paper's (g % L, g // L), L the ranks of a group; its print of g % T is an error.
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
        """Ranks of one group of hosts."""
        return self.inside.size()


def tower_groups(settings: TrainSettings, towers: int) -> TowerGroups:
    """The groups of hosts that ``settings`` asks for; collective.

    Raises:
        InputError: the ranks are no whole hosts, the hosts no whole groups, or a group would have
            no tower.
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
    """Which towers each group of hosts holds: the largest first, each where the fewest bytes are.

    Args:
        towers: features of each tower.
        sizes: bytes of each feature's table, above 0; then no group stays empty if there are towers
            enough.
        groups: number of groups of hosts.
    """
    group_of = spread_groups(towers, sizes, groups)
    return [
        [i for i, tower in enumerate(towers) if group_of[tower[0]] == group]
        for group in range(groups)
    ]
