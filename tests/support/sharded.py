"""A small DLRM whose tables are sharded in every way: model, cases, batches."""

from typing import Any

from recsys.data.loader import Batch
from recsys.models.settings import ModelSettings
from recsys.planning.tables import SHARDINGS
from recsys.training.settings import TrainSettings
from tests.support.batches import random_share, schema_of

SEED = 5
TOLERANCE = 1e-6
DIMENSION = 16  # four column shards
FEATURES = {"color": (5, "id"), "shop": (40, "id"), "history": (30, "list"), "user": (64, "id")}
SIZES = [32, 32, 13]  # rows of the global batches; the last one is uneven
SCHEMA = schema_of(FEATURES)
MODEL = ModelSettings.model_validate(
    {
        "architecture": "dlrm",
        "embedding_dimension": DIMENSION,
        "dense_layers": [8],
        "over_layers": [8],
        "cross_rank": 4,
    }
)
COLUMN_KINDS = [kind for kind, split in SHARDINGS.items() if split.columns]
KINDS = list(SHARDINGS)
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")
MIXED = {
    "table_color": "data_parallel",
    "table_shop": "grid_shard",
    "table_history": "table_row_wise",
    "table_user": "table_column_wise",
}
CASES = {
    f"{kind}-{optimizer}": {"sharding": kind, "table_optimizer": optimizer}
    for optimizer in OPTIMIZERS
    for kind in KINDS
    if optimizer != "rowwise_adagrad" or kind not in COLUMN_KINDS
} | {
    "grid_on_hosts_of_one-sgd": {"sharding": "grid_shard", "ranks_per_host": 1},
    "mixed-adagrad": {"table_sharding": MIXED, "table_optimizer": "adagrad"},
    "planner-sgd": {
        "table_sharding": {"table_user": "column_wise", "table_color": "data_parallel"}
    },
}


def train_settings(world_size: int, **changes: Any) -> TrainSettings:
    """Four ranks are two hosts of two."""
    base = {
        "world_size": world_size,
        "global_batch_size": 32,
        "table_optimizer": "sgd",
        "dense_optimizer": "sgd",
    }
    rates = {
        "table_learning_rate": 0.1,
        "dense_learning_rate": 0.05,
        "ranks_per_host": min(world_size, 2),
    }
    return TrainSettings.model_validate({**base, **rates, **changes})


def share(rows: int, seed: int, rank: int, world_size: int, dyadic: bool = False) -> Batch:
    """Rank ``rank``'s share of a seeded global batch, padded with a copy of row 0."""
    return random_share(FEATURES, SCHEMA.dense_width, rows, seed, rank, world_size, few_bits=dyadic)
