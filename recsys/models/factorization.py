"""A factorization machine (Rendle 2010): the probe whose embeddings alone carry the
interactions."""

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.schema import Schema
from recsys.models.ranker import SERVING, in_schema_order, log_odds, table_configs


class FactorizationMachine(nn.Module):
    """logit = bias + dense part + main effect of each id + dots of all pairs of factors, each with
    weight 1.

    Where an over arch weighs every pair as it likes, factors of features that do not interact may
    lie anywhere. Here they must be orthogonal, and those that do interact share directions: cosines
    tell. Column 0 of a table is the main effect, the others are factors.
    """

    def __init__(self, schema: Schema, dimension: int, table_device: str = "cpu") -> None:
        super().__init__()
        self.feature_names = [feature.name for feature in schema.categorical]
        self.dimension = dimension
        self.linear = nn.Linear(schema.dense_width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, log_odds(schema.initial_base_rate))
        tables = table_configs(schema, dimension)
        self.embeddings = EmbeddingBagCollection(tables=tables, device=torch.device(table_device))

    def embed(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Factors in the order of the schema: [B, F, N - 1]."""
        return self._columns(sparse)[:, :, 1:]

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """{"serving": logit [B]}."""
        columns = self._columns(sparse)
        main, factors = columns[:, :, 0].sum(dim=1), columns[:, :, 1:]
        squares = factors.square().sum(dim=(1, 2))
        pairs = (factors.sum(dim=1).square().sum(dim=1) - squares) / 2  # all pairs at once
        return {SERVING: self.linear(dense).squeeze(1) + main + pairs}

    def _columns(self, sparse: KeyedJaggedTensor) -> Tensor:
        return in_schema_order(self.embeddings(sparse), self.feature_names, self.dimension)
