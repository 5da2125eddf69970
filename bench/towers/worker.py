"""What a rank of bench/towers/cluster.py does for bench/towers/speed.py: engines that stay,
steps in turns."""

from itertools import repeat
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import distributed
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bench.towers.asleep import asleep_seconds
from bench.towers.cases import GLOBAL_BATCH, SCHEMA, TABLE_ROWS, TABLES, Architecture, contenders
from bench.towers.cluster import Shape
from recsys.data.loader import Batch
from recsys.models.factory import build_ranker
from recsys.towers.engine import tower_engine
from recsys.training.engine import Engine
from recsys.training.overlap import train_batches

SEED = 1
State = dict[str, Any]


def build(
    state: State, architecture: Architecture, shape: Shape, hardware: Path
) -> dict[str, dict[str, int]]:
    """An engine a contender, and this rank's share of the batch; how many tables of each kind each
    has."""
    state["batch"] = share(distributed.get_rank(), shape.world_size)
    state["engines"], kinds = {}, {}
    for one in contenders(architecture):
        partition = one.partition(shape.hosts)
        ranker = build_ranker(SCHEMA, one.settings(), partition, SEED, "meta")
        engine = state["engines"][one.name] = tower_engine(
            ranker, one.train(shape, hardware), SEED, partition
        )
        found = [row["kind"] for row in engine.plan_summary()]
        kinds[one.name] = {kind: found.count(kind) for kind in sorted(set(found))}
    return kinds


def start(state: State, name: str) -> None:
    """Begin to train ``name``: one step, after which its pipeline is full."""
    engine: Engine = state["engines"][name]
    state["steps"] = train_batches(engine, repeat(state["batch"]), engine.serving_loss)
    next(state["steps"])
    distributed.barrier()


def advance(state: State, count: int) -> tuple[list[float], float, float]:
    """``count`` steps: seconds of each; processor time and time asleep in collectives, seconds a
    step."""
    seconds, busy, asleep = [], process_time(), asleep_seconds()
    for _ in range(count):
        started = perf_counter()
        next(state["steps"])
        seconds.append(perf_counter() - started)
    return seconds, (process_time() - busy) / count, (asleep_seconds() - asleep) / count


def stop(state: State) -> None:
    """End what :func:`start` began."""
    state.pop("steps").close()
    distributed.barrier()


def share(rank: int, world_size: int) -> Batch:
    """This rank's part of a batch: an id a feature, uniform."""
    count = GLOBAL_BATCH // world_size
    draw = torch.Generator().manual_seed(SEED + rank)
    index = torch.arange(count)
    return Batch(
        dense=torch.randn(count, SCHEMA.dense_width, generator=draw),
        sparse=KeyedJaggedTensor(
            [feature.name for feature in SCHEMA.categorical],
            torch.randint(0, TABLE_ROWS, (TABLES * count,), generator=draw),
            lengths=torch.ones(TABLES * count, dtype=torch.int64),
        ),
        label=torch.randint(0, 2, (count,), generator=draw).float(),
        weight=torch.ones(count),
        domain=torch.zeros_like(index),
        group=index,
        example_id=index,
        event_time=index,
        score=torch.full((count,), float("nan")),
        staleness_ms=torch.zeros(count, dtype=torch.int64),
        global_rows=GLOBAL_BATCH,
    )
