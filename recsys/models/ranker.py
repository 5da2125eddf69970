"""The rankers: embeddings and dense features -> interaction -> representation -> logit."""

import math

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.schema import Schema
from recsys.models.layers import DotInteraction, LowRankCrossNetwork, perceptron
from recsys.models.settings import ModelSettings
from recsys.towers.exchange import PeerExchange
from recsys.towers.modules import CrossTower, DotTower

SERVING = "serving"
SMALLEST_RATE = 1e-4
TABLE_PREFIX = "table_"


class TowerArch(nn.Module):
    """An interaction of the dense vector with the embeddings, or with the outputs of ``towers``.

    ``members`` holds the positions of each tower's features; None without towers. The tower transform
    empties the towers of other hosts, and :meth:`compress` leaves those out.
    """

    members: list[list[int]] | None
    towers: nn.ModuleList

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
        """[B, W] and what :meth:`compress` gives -> [B, out_features]."""
        raise NotImplementedError


class DotArch(TowerArch):
    """DLRM: dots between the dense vector and the embeddings, or the towers' vectors."""

    def __init__(self, dense_features: int, towers: list[list[int]] | None, features: int, s: ModelSettings) -> None:
        super().__init__()
        dimension = s.tower_dimension if towers else s.embedding_dimension
        self.project = nn.Linear(dense_features, dimension)
        self.members = towers
        self.towers = nn.ModuleList(DotTower(len(t), s.embedding_dimension, dimension) for t in towers or [])
        self.interaction = DotInteraction(features + 1, dimension)
        self.out_features = self.interaction.out_features

    def interact(self, dense: Tensor, outputs: list[Tensor]) -> Tensor:
        """[B, W] and what :meth:`compress` gives -> [B, out_features]."""
        projected = self.project(dense)  # [B, D]
        vectors = torch.cat([projected, *(output.to(projected.dtype) for output in outputs)], dim=1)
        return self.interaction(vectors.unflatten(1, (-1, projected.shape[1])))  # [B, V, D]


class CrossArch(TowerArch):
    """DCNv2: cross layers over the dense vector and the embeddings, or the towers' outputs."""

    def __init__(self, dense_features: int, towers: list[list[int]] | None, features: int, s: ModelSettings) -> None:
        super().__init__()
        dimension = s.embedding_dimension
        self.project = nn.Linear(dense_features, dimension)
        self.members = towers
        modules = [
            CrossTower(len(t), dimension, s.tower_dimension, s.tower_cross_layers, s.cross_rank) for t in towers or []
        ]
        self.towers = nn.ModuleList(modules)
        width = sum(m.out_features for m in modules) if towers else features * dimension
        self.out_features = dimension + width
        self.cross = LowRankCrossNetwork(self.out_features, s.cross_layers, s.cross_rank)

    def interact(self, dense: Tensor, outputs: list[Tensor]) -> Tensor:
        """[B, W] and what :meth:`compress` gives -> [B, out_features]."""
        projected = self.project(dense)
        return self.cross(torch.cat([projected, *(output.to(projected.dtype) for output in outputs)], dim=1))


class Ranker(nn.Module):
    """One embedding table a categorical feature, a dense arch, an interaction and an over arch.

    ``towers`` holds the positions of each tower's features in ``schema.categorical``.
    ``table_device="meta"`` leaves the tables without memory, for the engine to shard. ``peers`` is set by
    the tower transform: this rank then computes its host's towers only, for its peers' examples.
    The head's bias starts at log(p / (1 - p)) of the schema's initial base rate.
    """

    def __init__(
        self, schema: Schema, settings: ModelSettings, towers: list[list[int]] | None, table_device: str
    ) -> None:
        super().__init__()
        self.feature_names = [feature.name for feature in schema.categorical]
        self.embedding_dimension = settings.embedding_dimension
        self.peers: PeerExchange | None = None
        tables = table_configs(schema, settings.embedding_dimension)
        widths = settings.dense_layers
        self.dense_arch = perceptron(schema.dense_width, widths)
        dense_features = widths[-1] if widths else schema.dense_width
        arch = DotArch if settings.architecture == "dlrm" else CrossArch
        self.interaction = arch(dense_features, towers, len(tables), settings)
        self.over_arch = perceptron(self.interaction.out_features, settings.over_layers)
        self.representation_size = settings.over_layers[-1]
        self.output = nn.Linear(self.representation_size, 1)
        rate = min(max(schema.initial_base_rate, SMALLEST_RATE), 1 - SMALLEST_RATE)
        nn.init.constant_(self.output.bias, math.log(rate / (1 - rate)))
        # Last, so that its draws of random numbers do not reach the dense part.
        self.embeddings = EmbeddingBagCollection(tables=tables, device=torch.device(table_device))

    def represent(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """[B, W] float32 and ids of F features -> [B, H]."""
        return self.over_arch(self.interaction.interact(self.dense_arch(dense), self.tower_outputs(sparse)))

    def tower_outputs(self, sparse: KeyedJaggedTensor) -> list[Tensor]:
        """Outputs [B, O] of the towers, in the model's order; without towers the embeddings [B, F * N]."""
        if self.peers is None:
            return self.interaction.compress(self.embed(sparse))
        embeddings = self.embed(self.peers.exchange_ids(sparse))
        return self.peers.exchange_outputs(self.interaction.compress(embeddings))

    def embed(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Pooled embeddings in the order of the schema: [B, F, N]."""
        pooled = self.embeddings(sparse)
        keys = pooled.keys()
        columns = pooled.values().view(-1, len(keys), self.embedding_dimension)  # [B, F, N], no copy
        if keys == self.feature_names:
            return columns
        order = torch.tensor([keys.index(name) for name in self.feature_names])  # a plan may reorder the columns
        return columns.index_select(1, order.to(columns.device))

    def head(self, representation: Tensor) -> Tensor:
        """[B, H] -> serving logit [B]."""
        return self.output(representation).squeeze(1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """{"serving": logit [B]}."""
        return {SERVING: self.head(self.represent(dense, sparse))}


def table_configs(schema: Schema, dimension: int) -> list[EmbeddingBagConfig]:
    """One table a categorical feature; lists are mean-pooled. Weights are written by the caller."""
    return [
        EmbeddingBagConfig(
            name=TABLE_PREFIX + feature.name,
            embedding_dim=dimension,
            num_embeddings=feature.num_embeddings,
            feature_names=[feature.name],
            pooling=PoolingType.MEAN if feature.kind == "list" else PoolingType.SUM,
            init_fn=_leave,
        )
        for feature in schema.categorical
    ]


def _leave(weight: Tensor) -> Tensor:
    """Initialise nothing: initial rows are written explicitly, by (seed, table, row)."""
    return weight
