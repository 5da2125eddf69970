"""Sequences: list features pooled by attention, with a target's embedding as the query (DIN, arXiv
1706.06978).

A sequence is looked up as ``length`` features with one id each, newest first, which share a table.
It therefore uses the same collection as every other feature, with the same plans, optimisers,
codecs and checkpoints.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.models.layers import perceptron
from recsys.models.names import position_names
from recsys.models.settings import SequenceSettings


@dataclass
class RankerBagConfig(EmbeddingBagConfig):
    """A table of a ranker.

    ``lengths`` gives the length of each sequence that is looked up in it; the sequence's positions
    are among its features. The first ``zero_columns`` columns of the whole feature's embedding
    start at 0.
    """

    lengths: dict[str, int] = field(default_factory=dict)
    zero_columns: int = 0


class SequencePooling(nn.Module):
    """The attention of every sequence of a model.

    Args:
        sequences: settings by feature.
        dimension: N, the width of the embeddings.
        own_weights: number of leading columns that stay 0 after pooling: a sequence has no
            first-order weight.
    """

    def __init__(
        self, sequences: Mapping[str, SequenceSettings], dimension: int, own_weights: int = 0
    ) -> None:
        super().__init__()
        self._own_weights = own_weights
        self.sequences = dict(sequences)
        kinds = {"multi_head": MultiHeadPool, "activation_unit": ActivationUnitPool}
        # The suffix keeps names like "items" apart from the methods of a ModuleDict.
        self.pools = nn.ModuleDict(
            {f"{n}_pool": kinds[one.attention](dimension, one) for n, one in sequences.items()}
        )

    def columns(self, features: Iterable[str]) -> list[str]:
        """Names of the look-ups for ``features``, in order."""
        return [column for name in features for column in self._columns_of(name)]

    def keep(self, features: Iterable[str]) -> None:
        """Remove the attention of sequences that are not in ``features``."""
        self.sequences = {name: one for name, one in self.sequences.items() if name in features}
        for key in self.pools.keys() - {f"{name}_pool" for name in self.sequences}:
            del self.pools[key]

    def forward(
        self, columns: Tensor, features: Sequence[str], sparse: KeyedJaggedTensor
    ) -> Tensor:
        """Embeddings [B, C, N] of the :meth:`columns` of F ``features``, and their ids -> [B, F,
        N]."""
        counts = dict(
            zip(sparse.keys(), sparse.lengths().view(len(sparse.keys()), -1), strict=True)
        )  # [B] each
        return self.pooled(columns, features, counts)

    def pooled(
        self, columns: Tensor, features: Sequence[str], counts: Mapping[str, Tensor]
    ) -> Tensor:
        """As :meth:`forward`, given the number of ids per example [B], by sequence."""
        widths = [len(self._columns_of(name)) for name in features]
        # [B, 1 or L, N] each
        vectors = dict(zip(features, columns.split(widths, dim=1), strict=True))
        pooled = []
        for name in features:
            vector = vectors[name]
            if name in self.sequences:
                absent = torch.arange(vector.shape[1], device=vector.device) >= counts[
                    name
                ].unsqueeze(1)  # [B, L]
                query = vectors[self.sequences[name].target]
                vector = self.pools[f"{name}_pool"](query, vector, absent).to(columns.dtype)
                vector = pad(vector[:, :, self._own_weights :], (self._own_weights, 0))
            pooled.append(vector)
        return torch.cat(pooled, dim=1)

    def _columns_of(self, name: str) -> list[str]:
        return (
            position_names(name, self.sequences[name].length) if name in self.sequences else [name]
        )


class MultiHeadPool(nn.Module):
    """Softmax attention with an extra zero key and value, so that an empty sequence is defined."""

    def __init__(self, dimension: int, settings: SequenceSettings) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            dimension, settings.heads, add_zero_attn=True, batch_first=True
        )

    def forward(self, query: Tensor, sequence: Tensor, absent: Tensor) -> Tensor:
        """[B, 1, N], [B, L, N], [B, L] bool -> [B, 1, N]."""
        # When weights are requested, it uses matrix products, which the FLOP counter knows, unlike
        # the fused kernel.
        pooled, _ = self.attention(
            query, sequence, sequence, key_padding_mask=absent, need_weights=True
        )
        return pooled


class ActivationUnitPool(nn.Module):
    """DIN's weighted sum of the sequence, with weights from a perceptron on each pair (section
    4.3); it starts as sum / L."""

    def __init__(self, dimension: int, settings: SequenceSettings) -> None:
        super().__init__()
        widths = settings.widths
        self.hidden = perceptron(4 * dimension, widths)
        self.weight = nn.Linear(widths[-1] if widths else 4 * dimension, 1)
        nn.init.constant_(self.weight.bias, 1 / settings.length)

    def forward(self, query: Tensor, sequence: Tensor, absent: Tensor) -> Tensor:
        """[B, 1, N], [B, L, N], [B, L] bool -> [B, 1, N]."""
        asked = query.expand_as(sequence)
        # [B, L, 4 N]
        pairs = torch.cat([asked, sequence, asked - sequence, asked * sequence], dim=2)
        weights = self.weight(self.hidden(pairs)).masked_fill(absent.unsqueeze(2), 0.0)  # [B, L, 1]
        return weights.transpose(1, 2) @ sequence.to(weights.dtype)


def bag_collection(
    tables: list[EmbeddingBagConfig], device: torch.device
) -> EmbeddingBagCollection:
    """An unsharded collection that looks up sequences by position."""
    collection = EmbeddingBagCollection(tables=tables, device=device)
    lengths = sequence_lengths(tables)
    if lengths:
        collection.register_forward_pre_hook(partial(_take_positions, lengths))
    return collection


def _take_positions(
    lengths: Mapping[str, int], _: nn.Module, inputs: tuple[Any, ...]
) -> tuple[KeyedJaggedTensor]:
    return (with_positions(inputs[0], lengths),)


def look_up_positions(
    sharded: ShardedEmbeddingBagCollection, tables: Iterable[EmbeddingBagConfig]
) -> None:
    """Make a sharded collection look up the sequences of ``tables`` by position, also when ids are
    distributed ahead."""
    lengths, distribute = sequence_lengths(tables), sharded.input_dist
    if lengths:
        # Here, not in the forward pass, which a pipeline skips when it distributes the next batch's
        # ids.
        def distribute_positions(ctx: Any, features: Any) -> Any:
            return distribute(ctx, with_positions(features, lengths))

        sharded.input_dist = distribute_positions


def sequence_lengths(tables: Iterable[EmbeddingBagConfig]) -> dict[str, int]:
    """The length L of each sequence that is looked up in ``tables``."""
    found = [table.lengths for table in tables if isinstance(table, RankerBagConfig)]
    return {name: length for lengths in found for name, length in lengths.items()}


def with_positions(sparse: KeyedJaggedTensor, lengths: Mapping[str, int]) -> KeyedJaggedTensor:
    """``sparse`` with each list in ``lengths`` replaced by its positions: the newest L ids, newest
    first, with one or no id each."""
    keys: list[str] = []
    ids: list[Tensor] = []
    counts: list[Tensor] = []
    for name, jagged in sparse.to_dict().items():
        if name not in lengths:
            keys.append(name)
            ids.append(jagged.values())
            counts.append(jagged.lengths())
            continue
        keys += position_names(name, lengths[name])
        positions = torch.arange(lengths[name], device=jagged.values().device).unsqueeze(1)
        there = positions < jagged.lengths()  # [L, B]
        ids.append(jagged.values()[(jagged.offsets()[1:] - 1 - positions)[there]])
        counts.append(there.flatten().to(jagged.lengths().dtype))
    return KeyedJaggedTensor(keys, torch.cat(ids), lengths=torch.cat(counts))
