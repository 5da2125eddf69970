"""What a ranker needs of the ranks that hold the towers of other hosts."""

from typing import Protocol

from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class Peers(Protocol):
    """What crosses hosts when each holds some of the towers: ids to the towers, tower outputs back.

    :class:`recsys.towers.exchange.PeerExchange` is one.
    """

    def exchange_ids(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Ids of B examples, all features -> ids of all peers' B examples each, the features held
        here."""
        ...

    def exchange_outputs(self, outputs: list[Tensor]) -> list[Tensor]:
        """Outputs [peers * B, O] of the towers held here -> those of all towers, [B, O], in the
        model's order."""
        ...

    def start_ids(self, sparse: KeyedJaggedTensor) -> None:
        """Begin a coming :meth:`exchange_ids`, which has to be called with the same object."""
        ...

    def send_ids(self) -> None:
        """Send what is left of what has begun."""
        ...

    def forget_ids(self) -> None:
        """Expect none of what was sent ahead."""
        ...
