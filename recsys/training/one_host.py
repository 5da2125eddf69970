"""A rendezvous for the ranks of one host, without the pause in which torchrun's own waits for nodes
that do not exist."""

from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from recsys.upstream import TCPStore

ONE_HOST_BACKEND = "one-host"
LOOPBACK = "127.0.0.1"
STORE_TIMEOUT_S = 600


class OneHostRendezvous(StaticTCPRendezvous):
    """A static rendezvous for one node, whose store uses a free port chosen by the system."""

    def get_backend(self) -> str:
        """The name under which it is registered."""
        return ONE_HOST_BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Node 0 of 1, and the address of the store."""
        found = super().next_rendezvous()
        assert isinstance(self._store, TCPStore)
        return RendezvousInfo(
            found.store, self.rank, self.world_size, RendezvousStoreInfo(LOOPBACK, self._store.port)
        )


def _rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    return OneHostRendezvous(
        LOOPBACK, 0, rank=0, world_size=1, run_id=parameters.run_id, timeout=STORE_TIMEOUT_S
    )


rendezvous_handler_registry.register(ONE_HOST_BACKEND, _rendezvous)
