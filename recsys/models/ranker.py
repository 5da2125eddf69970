"""The rankers: embeddings and dense features -> interaction -> representation -> logit."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.data.schema import Schema
from recsys.models.layers import DotInteraction, LowRankCrossNetwork, perceptron
from recsys.models.sequences import (
    SequenceBagConfig,
    SequencePooling,
    bag_collection,
    check_sequences,
    position_names,
)
from recsys.models.settings import PASS_THROUGH, ModelSettings, SequenceSettings
from recsys.models.wukong import WukongLayer
from recsys.towers.exchange import PeerExchange
from recsys.towers.modules import build_tower, tower_width

SERVING = "serving"
SMALLEST_RATE = 1e-4
TABLE_PREFIX = "table_"


class Arch(nn.Module):
    """The dense vector, and embeddings or the towers' outputs; subclasses interact them.

    ``members`` holds the positions of each tower's features; None without towers. The tower modules run
    here on what :meth:`compress` is given; the tower transform empties the towers of other hosts, leaves
    their outputs out, and calls :meth:`interact` with those of all. Towers that pass their embeddings
    through give them back in the order of the schema, so that the model is the one without towers.
    """

    def __init__(self, dense_features: int, towers: list[list[int]] | None, features: int, s: ModelSettings) -> None:
        super().__init__()
        self.dimension = s.interaction_dimension
        self.project = nn.Linear(dense_features, self._dense_dimension(s))
        self.members = towers
        self.towers = nn.ModuleList(build_tower(len(members), s) for members in towers or [])
        self.width = sum(tower_width(tower) for tower in self.towers) if towers else features * s.embedding_dimension
        self.order: list[int] | None = None
        if towers and s.tower_kind == PASS_THROUGH:
            placed = [position for members in towers for position in members]
            self.order = [placed.index(position) for position in range(features)]

    def forward(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """[B, W], [B, F, N] -> [B, out_features]."""
        return self.interact(dense, self.compress(embeddings))

    def compress(self, embeddings: Tensor) -> list[Tensor]:
        """[B, F, N] -> each tower's output [B, O]; without towers the embeddings themselves, [B, F * N]."""
        if self.members is None:
            return [embeddings.flatten(1)]
        pairs = zip(self.towers, self.members, strict=True)
        return [tower(embeddings[:, members]).flatten(1) for tower, members in pairs if members]

    def interact(self, dense: Tensor, outputs: list[Tensor]) -> Tensor:
        """[B, W] and the outputs of all towers, in the model's order -> [B, out_features]."""
        projected = self.project(dense)
        vectors = [output.to(projected.dtype) for output in outputs]
        if self.order is not None:
            placed = torch.cat(vectors, dim=1).unflatten(1, (len(self.order), self.dimension))
            vectors = [placed[:, self.order].flatten(1)]
        return self._interact(torch.cat([projected, *vectors], dim=1))  # [B, D + sum of O]

    def _dense_dimension(self, settings: ModelSettings) -> int:
        raise NotImplementedError

    def _interact(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class DotArch(Arch):
    """DLRM: dots between the dense vector and the embeddings, or the towers' vectors of D."""

    def __init__(self, dense_features: int, towers: list[list[int]] | None, features: int, s: ModelSettings) -> None:
        super().__init__(dense_features, towers, features, s)
        self.interaction = DotInteraction(1 + self.width // self.dimension, self.dimension)
        self.out_features = self.interaction.out_features

    def _dense_dimension(self, settings: ModelSettings) -> int:
        return settings.interaction_dimension

    def _interact(self, inputs: Tensor) -> Tensor:
        return self.interaction(inputs.unflatten(1, (-1, self.dimension)))  # [B, 1 + V, D]


class CrossArch(Arch):
    """DCNv2: cross layers over the dense vector and the embeddings, or the towers' outputs."""

    def __init__(self, dense_features: int, towers: list[list[int]] | None, features: int, s: ModelSettings) -> None:
        super().__init__(dense_features, towers, features, s)
        self.out_features = s.embedding_dimension + self.width
        self.cross = LowRankCrossNetwork(self.out_features, s.cross_layers, s.cross_rank)

    def _dense_dimension(self, settings: ModelSettings) -> int:
        return settings.embedding_dimension

    def _interact(self, inputs: Tensor) -> Tensor:
        return self.cross(inputs)


class WukongArch(Arch):
    """Wukong: a stack of layers over the dense vector and the embeddings, or the towers' vectors of D."""

    def __init__(self, dense_features: int, towers: list[list[int]] | None, features: int, s: ModelSettings) -> None:
        super().__init__(dense_features, towers, features, s)
        vectors, layers = 1 + self.width // self.dimension, []
        for _ in range(s.wukong.layers):
            layers.append(
                WukongLayer(
                    vectors, self.dimension, s.wukong.factorized, s.wukong.compressed, s.wukong.rank, s.wukong.widths
                )
            )
            vectors = layers[-1].out_vectors
        self.layers = nn.Sequential(*layers)
        self.out_features = vectors * self.dimension

    def _dense_dimension(self, settings: ModelSettings) -> int:
        return settings.interaction_dimension

    def _interact(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs.unflatten(1, (-1, self.dimension))).flatten(1)  # of [B, 1 + V, D]


ARCHITECTURES = {"dlrm": DotArch, "dcn": CrossArch, "wukong": WukongArch}


class Ranker(nn.Module):
    """One embedding table a categorical feature, a dense arch, an interaction and an over arch.

    ``towers`` holds the positions of each tower's features in ``schema.categorical``.
    ``table_device="meta"`` leaves the tables without memory, for the engine to shard. ``peers`` is set by
    the tower transform: this rank then computes its host's towers only, for its peers' examples.
    The head's bias starts at log(p / (1 - p)) of the schema's initial base rate. Two rankers in one
    model need two ``table_prefix``. Sequences are pooled by attention in :meth:`embed`; what is above them sees
    one vector a feature.

    Raises:
        InputError: the sequences do not fit the schema.
    """

    def __init__(
        self,
        schema: Schema,
        settings: ModelSettings,
        towers: list[list[int]] | None,
        table_device: str,
        table_prefix: str = TABLE_PREFIX,
    ) -> None:
        super().__init__()
        self.feature_names = [feature.name for feature in schema.categorical]
        self.dense_width = schema.dense_width
        self.embedding_dimension = settings.embedding_dimension
        self.peers: PeerExchange | None = None
        check_sequences(schema, settings.sequences, settings.embedding_dimension)
        tables = table_configs(schema, settings.embedding_dimension, table_prefix, settings.sequences)
        features = len(self.feature_names)
        widths = settings.dense_layers
        self.dense_arch = perceptron(schema.dense_width, widths)
        dense_features = widths[-1] if widths else schema.dense_width
        self.interaction = ARCHITECTURES[settings.architecture](dense_features, towers, features, settings)
        self.over_arch = perceptron(self.interaction.out_features, settings.over_layers)
        self.representation_size = settings.over_layers[-1]
        self.output = nn.Linear(self.representation_size, 1)
        rate = min(max(schema.initial_base_rate, SMALLEST_RATE), 1 - SMALLEST_RATE)
        nn.init.constant_(self.output.bias, math.log(rate / (1 - rate)))
        # After the dense part, so that it starts the same with sequences as without.
        self.sequences = SequencePooling(settings.sequences, settings.embedding_dimension)
        # Last, so that its draws of random numbers do not reach the dense part.
        self.embeddings = bag_collection(tables, torch.device(table_device))

    def represent(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """[B, W] float32 and ids of F features -> [B, H]."""
        return self.over_arch(self.interaction.interact(self.dense_arch(dense), self.tower_outputs(sparse)))

    def tower_outputs(self, sparse: KeyedJaggedTensor) -> list[Tensor]:
        """Outputs [B, O] of the towers, in the model's order; without towers the embeddings [B, F * N]."""
        if self.peers is None:
            return self.interaction.compress(self.embed(sparse))
        embeddings = self.embed(self.peers.exchange_ids(sparse))
        return self.peers.exchange_outputs(self.interaction.compress(embeddings))

    def represent_embedded(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """[B, W], [B, F, N] -> [B, H]: the ranker above its tables."""
        return self.over_arch(self.interaction(self.dense_arch(dense), embeddings))

    def embed(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Pooled embeddings in the order of the schema: [B, F, N]."""
        names = self.sequences.columns(self.feature_names)
        return self.pool(in_schema_order(self.embeddings(sparse), names, self.embedding_dimension), sparse)

    def pool(self, columns: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """What is looked up, [B, C, N] with a column a position of a sequence, and its ids -> [B, F, N]."""
        return self.sequences(columns, self.feature_names, sparse) if self.sequences.sequences else columns

    def head(self, representation: Tensor) -> Tensor:
        """[B, H] -> serving logit [B]."""
        return self.output(representation).squeeze(1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """{"serving": logit [B]}."""
        return {SERVING: self.head(self.represent(dense, sparse))}


def in_schema_order(pooled: KeyedTensor, names: list[str], dimension: int) -> Tensor:
    """Pooled embeddings of ``names``, in their order: [B, F, N]."""
    keys = pooled.keys()
    columns = pooled.values().view(-1, len(keys), dimension)  # [B, F, N], no copy
    if keys == names:
        return columns
    order = torch.tensor([keys.index(name) for name in names])  # a plan may reorder the columns
    return columns.index_select(1, order.to(columns.device))


def table_configs(
    schema: Schema,
    dimension: int,
    prefix: str = TABLE_PREFIX,
    sequences: Mapping[str, SequenceSettings] | None = None,
) -> list[EmbeddingBagConfig]:
    """One table a categorical feature; lists are mean-pooled. Weights are written by the caller.

    ``sequences`` are looked up position by position, in a table of their own or in their target's.
    """
    chosen = sequences or {}
    tables = []
    for feature in schema.categorical:
        own = chosen.get(feature.name)
        if own is not None and own.shares_table:
            continue
        shared = {name: s.length for name, s in chosen.items() if s.shares_table and s.target == feature.name}
        lengths = shared if own is None else {feature.name: own.length}
        names = [feature.name] if own is None else []
        names += [position for name, length in lengths.items() for position in position_names(name, length)]
        pooling = PoolingType.MEAN if feature.kind == "list" and own is None else PoolingType.SUM
        common = {"num_embeddings": feature.num_embeddings, "embedding_dim": dimension, "init_fn": _leave}
        common |= {"name": prefix + feature.name, "feature_names": names, "pooling": pooling}
        tables.append(SequenceBagConfig(**common, lengths=lengths) if lengths else EmbeddingBagConfig(**common))
    return tables


def _leave(weight: Tensor) -> Tensor:
    """Initialise nothing: initial rows are written explicitly, by (seed, table, row)."""
    return weight
