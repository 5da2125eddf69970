"""A small ranker with towers, as several hosts: settings, batches, sums that are exact."""

import random
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.models.initial_tables import initial_rows
from recsys.models.partition_file import Partition
from recsys.models.ranker import SERVING, Ranker
from recsys.models.settings import ModelSettings
from recsys.training.settings import TrainSettings
from tests.support.batches import random_share, schema_of

SEED = 11
TOLERANCE = 1e-6
DIMENSION = 16
FEATURES = {
    "color": (5, "id"),
    "shop": (40, "id"),
    "history": (30, "list"),
    "user": (64, "id"),
    "tags": (9, "list"),
    "city": (12, "id"),
    "hour": (24, "id"),
}
SCHEMA = schema_of(FEATURES)
KINDS = ["table_wise", "column_wise", "row_wise"]
SIZES = [32, 32, 13]  # rows of the global batches; the last one is uneven
EXACT_SIZES = [8, 4, 2]  # most ranks have no row of the last one


def model_settings(architecture: str) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "architecture": architecture,
            "embedding_dimension": DIMENSION,
            "dense_layers": [8],
            "over_layers": [8],
            "cross_rank": 4,
            "towers": True,
            "tower_dimension": 4,
        }
    )


def train_settings(
    world_size: int, layout: tuple[int, int, int] | None, **changes: Any
) -> TrainSettings:
    """With a layout the transform, else the flat engine, its tables whole."""
    base = {
        "world_size": world_size,
        "global_batch_size": 32,
        "table_optimizer": "sgd",
        "dense_optimizer": "sgd",
    }
    rates = {"table_learning_rate": 0.1, "dense_learning_rate": 0.05}
    hosts: dict[str, Any] = {"sharding": "table_wise"}
    if layout is not None:
        hosts = {"tower_transform": True, "ranks_per_host": layout[1], "hosts_per_tower": layout[2]}
    else:
        changes = {
            name: value
            for name, value in changes.items()
            if name not in ("sharding", "table_sharding")
        }
    return TrainSettings.model_validate({**base, **rates, **hosts, **changes})


def random_partition(layout: tuple[int, int, int], seed: int) -> Partition:
    """Any features in any towers, at least one tower a group of hosts."""
    draw = random.Random(f"{layout} {seed}")
    names = list(FEATURES)
    draw.shuffle(names)
    count = draw.randint(max(layout[0] // layout[2], 2), len(names))
    cuts = [0, *sorted(draw.sample(range(1, len(names)), count - 1)), len(names)]
    return Partition("manual", [names[a:b] for a, b in pairwise(cuts)], list(FEATURES))


def share(rows: int, seed: int, rank: int, world_size: int) -> Batch:
    """Rank ``rank``'s share of a seeded global batch of few bits, padded with a copy of row 0."""
    return random_share(FEATURES, SCHEMA.dense_width, rows, seed, rank, world_size, few_bits=True)


class Products(Ranker):
    """The sum of all products of the dense vector and of the towers' vectors: its gradients are
    sums of few bits."""

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        projected = dense.sum(dim=1, keepdim=True).expand(-1, DIMENSION)
        vectors = torch.cat([projected, *self.tower_outputs(sparse)], dim=1)
        vectors = vectors.unflatten(1, (-1, DIMENSION // 4))  # [B, V, N / 4]
        squared_sum, squares = vectors.sum(dim=1).square(), vectors.square().sum(dim=1)
        return {SERVING: (squared_sum - squares).sum(dim=1) / 2}


def few_bits(*arguments: Any) -> Tensor:
    """Initial rows rounded to sixteenths."""
    return (initial_rows(*arguments) * 16).round() / 16


def signed(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """The output, less for the clicked: [B]."""
    return outputs[SERVING] * (1 - 2 * batch.label)
