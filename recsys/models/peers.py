"""The interface to the ranks that hold other hosts' towers."""

from typing import Protocol

from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class Peers(Protocol):
    """Exchange between hosts when each holds some of the towers: ids go to the towers, outputs come
    back.

    :class:`recsys.towers.exchange.PeerExchange` implements it.
    """

    def exchange_ids(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Ids of B examples for all features -> ids of all peers' B examples each, for the features
        held here."""
        ...

    def exchange_outputs(self, outputs: list[Tensor]) -> list[Tensor]:
        """Outputs [peers * B, O] of the towers held here -> outputs [B, O] of all towers, in the
        model's order."""
        ...

    def start_ids(self, sparse: KeyedJaggedTensor) -> None:
        """Start a later :meth:`exchange_ids`, which must be called with the same object."""
        ...

    def send_ids(self) -> None:
        """Send the rest of an exchange that has started."""
        ...

    def forget_ids(self) -> None:
        """Discard exchanges that were started ahead."""
        ...
