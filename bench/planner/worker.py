"""Every plan of some models, trained on this rank by the engine: seconds of a step, bytes of tables
and state."""

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bench.planner.cases import Model, Ways
from bench.shared.power_law import power_law
from recsys.data.loader import Batch
from recsys.models.factory import build_ranker
from recsys.towers.engine import tower_engine
from recsys.training import ranks
from recsys.training.engine import Engine

SEED = 1
WARM_UP_STEPS = 2
MS = 1000.0


@dataclass(frozen=True)
class Measured:
    """What one plan took: medians over the rounds of the slowest rank's step, bytes held by each
    rank."""

    rows: list[dict[str, Any]]
    ms: float
    spread_ms: tuple[float, float]
    bytes: list[int]
    dense_parameters: int


def measure(model: Model, plans: list[Ways], rounds: int, steps: int) -> list[Measured]:
    """Build an engine a plan, then let them train in turn; called by every rank."""
    batch = share(model)
    engines = [_engine(model, plan) for plan in plans]
    for engine in engines:
        for _ in range(WARM_UP_STEPS):
            engine.train_step(batch, engine.serving_loss)
    times: list[list[float]] = [[] for _ in engines]
    for turn in range(rounds):
        for index in np.random.default_rng(turn).permutation(len(engines)):
            times[index].append(_step_ms(engines[index], batch, steps))
    return [
        Measured(
            rows=engine.plan_summary(),
            ms=median(taken),
            spread_ms=(min(taken), max(taken)),
            bytes=ranks.gather(held_bytes(engine)),
            dense_parameters=sum(parameter.numel() for parameter in engine._dense.values()),
        )
        for engine, taken in zip(engines, times, strict=True)
    ]


def share(model: Model) -> Batch:
    """This rank's part of a batch: power-law ids, lists of 1 to 2 n - 1 ids."""
    rank, count = ranks.rank(), model.batch_size // ranks.world_size()
    draw = np.random.default_rng((SEED, rank))
    values, lengths = [], []
    for rows, ids in model.tables:
        size = np.ones(count, dtype=np.int64) if ids == 1 else draw.integers(1, 2 * ids, count)
        lengths.append(size)
        values.append(power_law(draw, rows, int(size.sum())))
    index = torch.arange(count)
    return Batch(
        dense=torch.from_numpy(
            draw.standard_normal((count, model.schema.dense_width), dtype=np.float32)
        ),
        sparse=KeyedJaggedTensor(
            [feature.name for feature in model.schema.categorical],
            torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        ),
        label=torch.from_numpy(draw.integers(0, 2, count).astype(np.float32)),
        weight=torch.ones(count),
        domain=torch.zeros_like(index),
        group=index,
        example_id=index,
        event_time=index,
        score=torch.full((count,), float("nan")),
        staleness_ms=torch.zeros(count, dtype=torch.int64),
        global_rows=model.batch_size,
    )


def held_bytes(engine: Engine) -> int:
    """Bytes of this rank's table weights and of their optimiser state, as the engine's tensors have
    them."""
    state = engine.state()
    tables = [
        value for name, value in state["model"].items() if "embedding_bags" in name.split(".")
    ]
    tables += [one for states in state.get("tables", {}).values() for one in states.values()]
    return sum(part.numel() * part.element_size() for value in tables for part in _local(value))


def _local(value: Tensor | ShardedTensor) -> list[Tensor]:
    return (
        [shard.tensor for shard in value.local_shards()]
        if isinstance(value, ShardedTensor)
        else [value]
    )


def _engine(model: Model, plan: Ways) -> Engine:
    ranker = build_ranker(model.schema, model.settings, None, SEED, "meta")
    return tower_engine(ranker, plan.train(model, ranks.world_size()), SEED, plan.partition(model))


def _step_ms(engine: Engine, batch: Batch, steps: int) -> float:
    """Mean of a few steps, on the slowest rank."""
    distributed.barrier()
    started = perf_counter()
    for _ in range(steps):
        engine.train_step(batch, engine.serving_loss)
    elapsed = torch.tensor((perf_counter() - started) * MS / steps)
    distributed.all_reduce(elapsed, op=distributed.ReduceOp.MAX)
    return elapsed.item()
