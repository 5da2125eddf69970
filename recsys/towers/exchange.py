"""What crosses hosts under the tower transform: ids to the towers, tower outputs back (DMT, arXiv 2403.00877, 3.1)."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torchrec.distributed.dist_data import KJTAllToAll, PooledEmbeddingsAllToAll
from torchrec.distributed.types import QuantizedCommCodecs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class PeerExchange:
    """All-to-alls between the ranks of equal place on each group of hosts.

    Every rank sends its examples' ids to its peers, each the features of its own towers; each then
    holds the examples of all peers for its towers, and sends their outputs back. The backward pass
    divides by the number of peers, as TorchRec's other exchanges divide by theirs.

    Args:
        peers: process group, one rank a group of hosts.
        features: names that each group of hosts looks up.
        outputs: (position of the tower in the model, width O) of each group's towers, in its order.
        codecs: how outputs and their gradients are quantised on the wire; None: as they are.
    """

    def __init__(
        self,
        peers: ProcessGroup,
        features: list[list[str]],
        outputs: list[list[tuple[int, int]]],
        codecs: QuantizedCommCodecs | None = None,
    ) -> None:
        self._features = [name for names in features for name in names]
        self._ids = KJTAllToAll(peers, [len(names) for names in features])
        widths = [sum(width for _, width in towers) for towers in outputs]
        self._outputs = PooledEmbeddingsAllToAll(peers, widths, codecs=codecs)
        arrived = [tower for towers in outputs for tower in towers]  # by group of hosts, not in the model's order
        self._widths = [width for _, width in arrived]
        self._order = sorted(range(len(arrived)), key=lambda place: arrived[place][0])

    def exchange_ids(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Ids of B examples, all features -> ids of the peers' B examples each, the features of this group."""
        keys = sparse.keys()
        ordered = sparse.permute([keys.index(name) for name in self._features])
        return self._ids(ordered).wait().wait()

    def exchange_outputs(self, outputs: list[Tensor]) -> list[Tensor]:
        """This group's tower outputs [peers * B, O] -> those of all towers, [B, O], in the model's order."""
        # One type on every host, also where a tower is the identity and so not cast.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        sent = torch.cat([output.to(dtype) for output in outputs], dim=1)
        arrived = self._outputs(sent).wait().split(self._widths, dim=1)
        return [arrived[place] for place in self._order]
