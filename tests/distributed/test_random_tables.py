"""Random table sets, kinds, hosts and optimisers on 1 to 4 ranks against float64 PyTorch.

Many tables have fewer rows than there are ranks, and widths differ: FBGEMM's kernels on the CPU
find the table of a feature by where its rows begin, which an empty shard shares with the next one.
"""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag
from torchrec.modules.embedding_configs import PoolingType

from recsys.models.initial_tables import initial_rows
from recsys.planning.tables import SHARDINGS, Kind, TableOptimizer, computes_exactly
from recsys.training.engine import Engine
from tests.support.launches import run_cases
from tests.support.sharded import train_settings
from tests.support.table_sets import SEED, Linear, TableSet, batches

RATE, DENSE_RATE, EPSILON = 0.1, 0.05, 1e-8
TOLERANCE = 2e-6  # float32 beside float64, after eight steps
ROWS = [1, 2, 3, 5, 101]
COLUMNS = [4, 8, 24, 32]
CASES_PER_WORLD = 6


def drawn(world_size: int, number: int) -> TableSet:
    """A table set of two to five tables, the first with one to three rows."""
    draw = random.Random(f"{world_size} {number}")
    optimizer: TableOptimizer = draw.choice(["sgd", "adagrad", "rowwise_adagrad"])
    kinds: list[Kind] = [kind for kind in SHARDINGS if computes_exactly(kind, optimizer)]
    split_by_rows: list[Kind] = [kind for kind in kinds if SHARDINGS[kind].rows]
    count = draw.randint(2, 5)
    one_kind: Kind | None = draw.choice([None, *split_by_rows, *split_by_rows])
    chosen: list[Kind] = [one_kind or draw.choice(kinds) for _ in range(count)]
    return TableSet(
        tables=[
            (
                draw.choice(ROWS[:3] if index == 0 else ROWS),
                draw.choice(COLUMNS),
                draw.choice([1, 1, 2]),
                draw.choice(["id", "list"]),
                draw.choice([PoolingType.SUM, PoolingType.MEAN]),
            )
            for index in range(count)
        ],
        kinds=chosen,
        optimizer=optimizer,
        ranks_per_host=draw.choice([n for n in range(1, world_size + 1) if world_size % n == 0]),
    )


def train(case: TableSet) -> dict[str, Tensor]:
    """On every rank: the engine's weights after STEPS, by name."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    settings = train_settings(
        world_size,
        table_optimizer=case.optimizer,
        ranks_per_host=case.ranks_per_host,
        table_sharding={f"table_{index}": kind for index, kind in enumerate(case.kinds)},
        table_learning_rate=RATE,
        dense_learning_rate=DENSE_RATE,
    )
    engine = Engine(Linear(case.configs()), settings, SEED)
    for batch in batches(case, rank, world_size):
        engine.train_step(batch, engine.serving_loss)
    return engine.gather_state()


def reference(case: TableSet) -> dict[str, Tensor]:
    """The same by hand in float64, on one process, without TorchRec and FBGEMM."""
    configs = case.configs()
    model = Linear(configs)
    tables = {
        config.name: initial_rows(
            SEED, config.name, config.num_embeddings, config.embedding_dim, 0, config.num_embeddings
        )
        .double()
        .requires_grad_()
        for config in configs
    }
    dense = [p.detach().double().requires_grad_() for p in model.layer.parameters()]
    start = train_settings(1).initial_accumulator / train_settings(1).global_batch_size ** 2
    sums: dict[str, Any] = dict.fromkeys(tables, start)
    for batch in batches(case, 0, 1):
        inputs = [batch.dense.double()]
        for config in configs:
            for name in config.feature_names:
                bags = batch.sparse[name]
                mode = "mean" if config.pooling is PoolingType.MEAN else "sum"
                inputs.append(
                    embedding_bag(
                        bags.values(), tables[config.name], bags.offsets()[:-1], mode=mode
                    )
                )
        logits = (torch.cat(inputs, dim=1) @ dense[0].T).squeeze(1) + dense[1]
        loss = binary_cross_entropy_with_logits(logits, batch.label.double())
        gradients = torch.autograd.grad(loss, [*tables.values(), *dense])
        with torch.no_grad():
            for (name, table), gradient in zip(tables.items(), gradients, strict=False):
                step = gradient
                if case.optimizer != "sgd":
                    square = gradient.square()
                    if case.optimizer == "rowwise_adagrad":
                        square = square.mean(dim=1, keepdim=True)
                    sums[name] = sums[name] + square
                    step = gradient / (sums[name].sqrt() + EPSILON)
                table -= RATE * step
            for parameter, gradient in zip(dense, gradients[len(tables) :], strict=True):
                parameter -= DENSE_RATE * gradient
    weights = {f"embeddings.embedding_bags.{name}.weight": t for name, t in tables.items()}
    return weights | {"layer.weight": dense[0], "layer.bias": dense[1]}


WORLDS = [1, 2, 3, 4]
CASES: dict[Any, TableSet] = {
    (world_size, number): drawn(world_size, number)
    for world_size in WORLDS
    for number in range(CASES_PER_WORLD)
}
# An empty shard before a wider and before a narrower one, and in the middle
BY_ROWS: list[Kind] = ["row_wise", "table_row_wise"]
KEEP_SUMS: list[TableOptimizer] = ["adagrad", "rowwise_adagrad"]
SHAPES = [((2, 101), (4, 24)), ((2, 101), (32, 24)), ((101, 1, 2, 50), (8, 32, 4, 24))]
CASES |= {
    (3, f"{kind} {rows} {columns} {optimizer}"): TableSet(
        [(n, width, 1, "id", PoolingType.SUM) for n, width in zip(rows, columns, strict=True)],
        [kind] * len(rows),
        optimizer,
        3,
    )
    for kind in BY_ROWS
    for optimizer in KEEP_SUMS
    for rows, columns in SHAPES
}


@pytest.fixture(scope="module")
def trained() -> dict[Any, list[dict[str, Tensor]]]:
    """Weights by rank, by case; ranks are started once a world size."""
    return run_cases(train, {key: (key[0], (case,)) for key, case in CASES.items()})


@pytest.mark.parametrize("key", CASES, ids=str)
def test_weights_equal_those_in_float64(
    key: Any, trained: dict[Any, list[dict[str, Tensor]]]
) -> None:
    found, expected = trained[key][0], reference(CASES[key])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=TOLERANCE, msg=name)
