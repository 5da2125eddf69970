"""A factorization machine (Rendle 2010): a probe in which only the embeddings carry
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

    If an over arch can weight every pair freely, factors of features that do not interact may point
    anywhere. Here they must be orthogonal, while interacting ones share directions, so cosines show
    which features interact. Column 0 of a table is the main effect, the others are factors.
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
        """Factors in the schema's order: [B, F, N - 1]."""
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
