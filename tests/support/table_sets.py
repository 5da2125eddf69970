"""Sets of tables of any shape under a linear layer, and their batches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.planning.tables import Kind, TableOptimizer
from tests.support.batches import Features, random_share

STEPS = 8
SEED = 9
WIDTH = 3  # dense inputs


@dataclass(frozen=True)
class TableSet:
    """Tables as (rows, columns, number of features, kind of the features, pooling), their kinds of
    sharding, and how they are trained."""

    tables: list[tuple[int, int, int, str, PoolingType]]
    kinds: list[Kind]
    optimizer: TableOptimizer
    ranks_per_host: int

    def configs(self) -> list[EmbeddingBagConfig]:
        return [
            EmbeddingBagConfig(
                name=f"table_{index}",
                num_embeddings=rows,
                embedding_dim=columns,
                feature_names=[f"feature_{index}_{one}" for one in range(features)],
                pooling=pooling,
            )
            for index, (rows, columns, features, _, pooling) in enumerate(self.tables)
        ]

    def features(self) -> Features:
        return {
            name: (config.num_embeddings, table[3])
            for config, table in zip(self.configs(), self.tables, strict=True)
            for name in config.feature_names
        }


class Linear(nn.Module):
    """A linear layer over the dense inputs and the pooled embeddings."""

    def __init__(self, configs: list[EmbeddingBagConfig]) -> None:
        super().__init__()
        width = WIDTH + sum(c.embedding_dim * len(c.feature_names) for c in configs)
        self.layer = nn.Linear(width, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-0.7, 0.7, width).sin())
            self.layer.bias.fill_(0.1)
        self.names = [name for config in configs for name in config.feature_names]
        self.embeddings = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        pooled = self.embeddings(sparse).to_dict()
        inputs = torch.cat([dense, *(pooled[name] for name in self.names)], dim=1)
        return {"serving": self.layer(inputs).squeeze(1)}


def batches(case: TableSet, rank: int, world_size: int) -> list[Batch]:
    features = case.features()
    return [
        random_share(features, WIDTH, 12 + step, step, rank, world_size) for step in range(STEPS)
    ]
