"""A small engine: model, settings, batches; all that it holds."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from recsys.data.loader import Batch
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.training.engine import Engine
from recsys.training.settings import TrainSettings
from tests.support.batches import random_share, schema_of

SEED = 3
FEATURES = {"color": (7, "id"), "shop": (40, "id"), "history": (30, "list")}
SCHEMA = schema_of(FEATURES)
STEPS = 6
ADAM = {
    "table_optimizer": "rowwise_adagrad",
    "dense_optimizer": "adam",
    "table_learning_rate": 0.05,
}


def model_settings(architecture: str = "dlrm", towers: bool = False) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "architecture": architecture,
            "embedding_dimension": 8,
            "dense_layers": [8],
            "over_layers": [16, 8],
            "cross_rank": 4,
            "towers": towers,
            "tower_dimension": 4,
        }
    )


def train_settings(world_size: int, **changes: Any) -> TrainSettings:
    base = {
        "world_size": world_size,
        "global_batch_size": 32,
        "table_optimizer": "sgd",
        "dense_optimizer": "sgd",
    }
    rates = {"table_learning_rate": 0.5, "dense_learning_rate": 0.05}
    return TrainSettings.model_validate({**base, **rates, **changes})


def share(rows: int, seed: int, rank: int, world_size: int) -> Batch:
    """Rank ``rank``'s share of a seeded global batch, padded with a copy of row 0."""
    return random_share(FEATURES, SCHEMA.dense_width, rows, seed, rank, world_size)


def settings_for(kind: str, world_size: int, **changes: Any) -> TrainSettings:
    return train_settings(world_size, sharding=kind, **(ADAM | changes))


def make_engine(settings: TrainSettings, seed: int = SEED) -> Engine:
    return Engine(build_ranker(SCHEMA, model_settings(), None, seed, "meta"), settings, seed)


def train_steps(engine: Engine, first: int, last: int) -> None:
    for step in range(first, last):
        batch = share(32 - step, step, engine.rank, engine.world_size)
        engine.train_step(batch, engine.serving_loss)


def everything(engine: Engine) -> dict[str, Tensor]:
    """Weights and optimiser state of all ranks, unsharded, by name, on rank 0; empty on the
    others."""
    # Name: size, (offsets, shard)
    mine: dict[str, tuple[tuple[int, ...], list[tuple[list[int], Tensor]]]] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(f"{path}/{name}", inner)
        elif isinstance(value, ShardedTensor):
            shards = [
                (list(s.metadata.shard_offsets), s.tensor.detach().clone())
                for s in value.local_shards()
            ]
            mine[path] = tuple(value.metadata().size), shards
        else:
            whole = torch.as_tensor(value).detach().clone()
            mine[path] = tuple(whole.shape), [([0] * whole.dim(), whole)]

    visit("", engine.state())
    ranks: list[Any] | None = [None] * engine.world_size if engine.rank == 0 else None
    distributed.gather_object(mine, ranks)
    if ranks is None:
        return {}
    found: dict[str, Tensor] = {}
    for name, (size, shards) in ((name, part) for rank in ranks for name, part in rank.items()):
        whole = found.setdefault(name, torch.full(size, float("nan")))
        for offsets, shard in shards:
            places = tuple(
                slice(start, start + n) for start, n in zip(offsets, shard.shape, strict=True)
            )
            whole[places] = shard
    assert not any(value.isnan().any() for value in found.values())
    return found
