"""Send ids to the towers, without anything that the receiver knows already (DMT, arXiv 2403.00877,
section 3.1, step a).

TorchRec's exchange sends sizes, then a length per example and feature, then the ids, all as int64.
But every rank has the same number of examples, and most features have one id per example. So two
messages are enough. The first has a size that all ranks know: the ids of single-id features, and
the numbers of ids of the others. The second contains the ids so counted. Both are int32 if every id
fits.
"""

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup, Work
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class IdExchange:
    """All-to-alls of ids between the ranks with the same position in each group of hosts.

    Args:
        peers: process group with one rank per group of hosts, all with the same number of examples.
        features: names of the features that each group of hosts looks up.
        lists: features with any number of ids per example; the others have one.
        dtype: type of ids on the wire.
    """

    def __init__(
        self, peers: ProcessGroup, features: list[list[str]], lists: set[str], dtype: torch.dtype
    ) -> None:
        self.peers = peers
        self.features = features
        self.lists = lists
        self.dtype = dtype

    def start(self, sparse: KeyedJaggedTensor) -> "IdsOnTheirWay":
        """Start to send the ids of B examples for all features."""
        return IdsOnTheirWay(self, sparse)


class IdsOnTheirWay:
    """A started exchange of the ids ``sparse``.

    Raises:
        ValueError: a feature that is not a list does not have one id per example.
    """

    def __init__(self, exchange: IdExchange, sparse: KeyedJaggedTensor) -> None:
        self.sparse = sparse
        self._exchange = exchange
        self._own = exchange.features[exchange.peers.rank()]
        self._bags = _bags(sparse, exchange)
        self._examples = sparse.stride()
        lengths = sparse.lengths().view(len(self._bags), self._examples)  # [F, B]
        rows = dict(zip(self._bags, lengths, strict=True))
        sent = [
            rows[n] if n in exchange.lists else self._bags[n]
            for names in exchange.features
            for n in names
        ]
        sizes = [len(names) * self._examples for names in exchange.features]
        arriving = [len(self._own) * self._examples] * exchange.peers.size()
        self._first = _Message(sent, sizes, arriving, exchange)
        self._second: _Message | None = None
        self._lengths: Tensor | None = None
        self._rows = self._first.buffer
        self._counts: list[list[int]] = []

    def send(self) -> None:
        """Wait for the first message, whose numbers of ids give the size of the second, and send
        the second, once."""
        if self._lengths is not None:
            return
        arrived = self._first.arrived().view(
            self._exchange.peers.size(), len(self._own), self._examples
        )
        self._rows = arrived.transpose(0, 1).flatten(1)  # [F of this group, examples of all peers]
        are_lists = torch.tensor(
            [name in self._exchange.lists for name in self._own], device=arrived.device
        )
        self._lengths = torch.where(are_lists[:, None], self._rows, 1)
        lists = [
            [name for name in names if name in self._exchange.lists]
            for names in self._exchange.features
        ]
        if any(lists):
            sent = [self._bags[name] for names in lists for name in names]
            sizes = [sum(len(self._bags[name]) for name in names) for names in lists]
            self._counts = arrived[:, are_lists].sum(dim=2).tolist()  # [peers, lists of this group]
            self._second = _Message(
                sent, sizes, [sum(counts) for counts in self._counts], self._exchange
            )

    def arrived(self) -> KeyedJaggedTensor:
        """The ids of the peers' B examples each, for this group's features."""
        self.send()
        assert self._lengths is not None
        values = (
            self._rows.flatten()
            if self._second is None
            else torch.cat(self._mixed(self._second.arrived()))
        )
        return KeyedJaggedTensor(self._own, values.long(), lengths=self._lengths.flatten().long())

    def _mixed(self, ids: Tensor) -> list[Tensor]:
        """The ids of each feature, concatenated; those of lists are ordered by peer and list."""
        parts = iter(ids.split([count for counts in self._counts for count in counts]))
        by_peer = [[next(parts) for _ in counts] for counts in self._counts]
        lists = iter([torch.cat(chunks) for chunks in zip(*by_peer, strict=True)])
        chosen = zip(self._own, self._rows, strict=True)
        return [next(lists) if name in self._exchange.lists else row for name, row in chosen]


class _Message:
    """A running all-to-all of the tensors ``sent``, concatenated by rank."""

    def __init__(
        self, sent: list[Tensor], sizes: list[int], arriving: list[int], exchange: IdExchange
    ) -> None:
        self._sent = torch.cat(sent).to(exchange.dtype)
        self.buffer = self._sent.new_empty(sum(arriving))
        self._work: Work | None = distributed.all_to_all_single(
            self.buffer, self._sent, arriving, sizes, group=exchange.peers, async_op=True
        )

    def arrived(self) -> Tensor:
        """What the other ranks sent, by rank."""
        assert self._work is not None  # this rank is in the group
        self._work.wait()
        return self.buffer


def _bags(sparse: KeyedJaggedTensor, exchange: IdExchange) -> dict[str, Tensor]:
    """The ids of each feature."""
    names, examples = sparse.keys(), sparse.stride()
    bags = dict(zip(names, sparse.values().split(sparse.length_per_key()), strict=True))
    for name, ids in bags.items():
        if name not in exchange.lists and len(ids) != examples:
            raise ValueError(
                f"{name}: {len(ids)} ids in {examples} examples; a feature that is not a list has "
                f"one each"
            )
    return bags
