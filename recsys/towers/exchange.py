"""The exchange between hosts under the tower transform: ids to the towers, tower outputs back (DMT,
arXiv 2403.00877, section 3.1)."""

import torch
from torch import Tensor
from torchrec.distributed.dist_data import PooledEmbeddingsAllToAll
from torchrec.distributed.types import QuantizedCommCodecs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.towers.ids import IdExchange, IdsOnTheirWay


class PeerExchange:
    """All-to-alls between the ranks with the same position in each group of hosts.

    Every rank sends its examples' ids to its peers, to each one the features of its towers. Each
    rank then has the examples of all peers for its own towers, and sends their outputs back. The
    backward pass divides by the number of peers, just as TorchRec's other exchanges divide by
    theirs.

    Args:
        ids: between the ranks of a process group, one per group of hosts.
        outputs: (position of the tower in the model, width O) of each group's towers, in the
            group's order.
        codecs: how outputs and their gradients are quantised on the wire; None: unchanged.
    """

    def __init__(
        self,
        ids: IdExchange,
        outputs: list[list[tuple[int, int]]],
        codecs: QuantizedCommCodecs | None = None,
    ) -> None:
        self._ids = ids
        widths = [sum(width for _, width in towers) for towers in outputs]
        self._outputs = PooledEmbeddingsAllToAll(ids.peers, widths, codecs=codecs)
        self._ahead: list[IdsOnTheirWay] = []
        # By group of hosts, not in the model's order
        arrived = [tower for towers in outputs for tower in towers]
        self._widths = [width for _, width in arrived]
        self._order = sorted(range(len(arrived)), key=lambda place: arrived[place][0])

    def exchange_ids(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Ids of B examples for all features -> ids of the peers' B examples each, for this group's
        features.

        If :meth:`start_ids` sent them ahead, this waits for their arrival.
        """
        for ahead in self._ahead:
            if ahead.sparse is sparse:
                self._ahead.remove(ahead)
                return ahead.arrived()
        return self._start(sparse).arrived()

    def start_ids(self, sparse: KeyedJaggedTensor) -> None:
        """Start a later :meth:`exchange_ids`, which must be called with the same object."""
        self._ahead.append(self._start(sparse))

    def send_ids(self) -> None:
        """Send the rest of an exchange that has started; this waits for the peers' numbers of ids,
        not for the ids."""
        for ahead in self._ahead:
            ahead.send()

    def forget_ids(self) -> None:
        """Discard exchanges that were started ahead."""
        self._ahead = []

    def _start(self, sparse: KeyedJaggedTensor) -> IdsOnTheirWay:
        return self._ids.start(sparse)

    def exchange_outputs(self, outputs: list[Tensor]) -> list[Tensor]:
        """This group's tower outputs [peers * B, O] -> outputs [B, O] of all towers, in the model's
        order."""
        # One type on every host, also if a tower is the identity and so not cast.
        dtype = (
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        )
        sent = torch.cat([output.to(dtype) for output in outputs], dim=1)
        arrived = self._outputs(sent).wait().split(self._widths, dim=1)
        return [arrived[place] for place in self._order]
