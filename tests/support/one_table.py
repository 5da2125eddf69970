"""A model of one table and one dense layer, and its batches."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.training.settings import TrainSettings

ROWS, DIMENSION, WIDTH, BATCH = 20, 4, 3, 16
SEED = 11
BASE = {
    "world_size": 1,
    "table_optimizer": "sgd",
    "table_learning_rate": 0.2,
    "dense_learning_rate": 0.05,
}


class Small(nn.Module):
    """One table and one dense layer."""

    def __init__(self, table_device: str = "meta") -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH + DIMENSION, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-0.4, 0.4, WIDTH + DIMENSION))
            self.layer.bias.fill_(0.1)
        config = EmbeddingBagConfig(
            name="table_a",
            embedding_dim=DIMENSION,
            num_embeddings=ROWS,
            feature_names=["a"],
            init_fn=lambda w: w,
        )
        self.embeddings = EmbeddingBagCollection(tables=[config], device=torch.device(table_device))

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        inputs = torch.cat([dense, self.embeddings(sparse).to_dict()["a"]], dim=1)  # [B, W + N]
        return {"serving": self.layer(inputs).squeeze(1)}


def train_settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({**BASE, "sharding": "table_wise", **changes})


def make_batch(step: int) -> Batch:
    draw = torch.Generator().manual_seed(step)
    ids = torch.arange(BATCH)
    values = torch.randint(0, ROWS, (BATCH,), generator=draw)
    return Batch(
        dense=torch.randn(BATCH, WIDTH, generator=draw),
        sparse=KeyedJaggedTensor(["a"], values, lengths=torch.ones(BATCH, dtype=torch.int64)),
        label=torch.randint(0, 2, (BATCH,), generator=draw).float(),
        weight=torch.ones(BATCH),
        domain=torch.zeros_like(ids),
        group=ids,
        example_id=ids,
        event_time=ids,
        score=torch.full((BATCH,), math.nan),
        staleness_ms=torch.zeros(BATCH, dtype=torch.int64),
        global_rows=BATCH,
    )
