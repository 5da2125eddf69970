"""Sequences pooled by attention, in every kind of sharding on gloo ranks, against lookups and
attention by hand."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.config import InputError
from recsys.data.loader import Batch
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import ModelSettings
from recsys.planning.tables import SHARDINGS
from recsys.towers.engine import tower_engine
from recsys.training.differential import TouchedRows
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.overlap import train_batches
from recsys.training.settings import TrainSettings
from tests.support.batches import random_share, schema_of

pytestmark = pytest.mark.slow

SEED = 5
TOLERANCE = 1e-6
EPSILON = 1e-8
DIMENSION = 16
FEATURES = {
    "color": (5, "id"),
    "shop": (40, "id"),
    "history": (30, "list"),
    "saved": (40, "list"),
    "user": (64, "id"),
}
SIZES = [32, 32, 13]  # rows of the global batches; the last one is uneven
SCHEMA = schema_of(FEATURES)
# Lists hold up to three ids: one sequence leaves some out, the other always has room.
HISTORY = {"target": "shop", "length": 2, "attention": "multi_head", "heads": 2}
SAVED = {
    "target": "shop",
    "length": 4,
    "attention": "activation_unit",
    "widths": [6],
    "shares_table": True,
}
MODEL = ModelSettings.model_validate(
    {
        "architecture": "dlrm",
        "embedding_dimension": DIMENSION,
        "dense_layers": [8],
        "over_layers": [8],
        "sequences": {"history": HISTORY, "saved": SAVED},
        "tower_dimension": 4,
        "first_order": False,  # tests/recsys/models/test_first_order.py
    }
)
ALONE = Partition("manual", [["color", "user"], ["shop", "history", "saved"]], list(FEATURES))
COLUMN_KINDS = [kind for kind, sharding in SHARDINGS.items() if sharding.columns]
KINDS = list(SHARDINGS)
CASES: dict[str, dict[str, Any]] = {
    f"{kind}-{optimizer}": {"sharding": kind, "table_optimizer": optimizer}
    for optimizer in ("adagrad", "rowwise_adagrad")
    for kind in KINDS
    if optimizer != "rowwise_adagrad" or kind not in COLUMN_KINDS
} | {
    "planner-adagrad": {},
    "in step-adagrad": {"overlap": False},
    "in files-rowwise_adagrad": {
        "table_memory": "file",
        "sharding": "row_wise",
        "table_optimizer": "rowwise_adagrad",
    },
}


def train_settings(world_size: int, **changes: Any) -> TrainSettings:
    base = {
        "world_size": world_size,
        "global_batch_size": 32,
        "table_optimizer": "adagrad",
        "dense_optimizer": "sgd",
    }
    rates = {"table_learning_rate": 0.1, "dense_learning_rate": 0.05, "ranks_per_host": world_size}
    return TrainSettings.model_validate({**base, **rates, **changes})


def shares(rank: int, world_size: int, sizes: Iterable[int] = tuple(SIZES)) -> list[Batch]:
    """Rank ``rank``'s shares of seeded global batches."""
    return [
        random_share(FEATURES, SCHEMA.dense_width, n, seed, rank, world_size)
        for seed, n in enumerate(sizes)
    ]


def train(engine: Engine, batches: Iterable[Batch]) -> dict[str, Tensor]:
    for _ in train_batches(engine, batches, engine.serving_loss):
        pass
    return engine.gather_state()


def train_all(folder: Path) -> dict[str, dict[str, Tensor]]:
    """On every rank: each case's weights after SIZES; tables in files lie in ``folder``."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    states = {}
    for name, changes in CASES.items():
        settings = train_settings(world_size, table_file_dir=folder, **changes)
        ranker = build_ranker(SCHEMA, MODEL, None, SEED, "meta")
        states[name] = train(Engine(ranker, settings, SEED), shares(rank, world_size))
    return states


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    return run_on_ranks(train_all, (tmp_path_factory.mktemp("tables"),), 2, 1)[0]


def lists_of(batch: Batch, name: str) -> list[list[int]]:
    jagged = batch.sparse[name]
    return [part.tolist() for part in jagged.values().split(jagged.lengths().tolist())]


def attend_by_hand(weights: Mapping[str, Tensor], query: Tensor, keys: Tensor) -> Tensor:
    """Softmax attention of one example in two heads, with a key and a value of zeros: [N], [n, N]
    -> [N]."""
    projections = weights["attention.in_proj_weight"].split(DIMENSION)
    biases = weights["attention.in_proj_bias"].split(DIMENSION)
    q, k, v = (
        x @ w.T + b for x, w, b in zip((query, keys, keys), projections, biases, strict=True)
    )
    heads = []
    for head in (slice(0, DIMENSION // 2), slice(DIMENSION // 2, DIMENSION)):
        scores = torch.cat([k[:, head] @ q[head] / (DIMENSION // 2) ** 0.5, torch.zeros(1)])
        heads.append(scores.softmax(dim=0)[:-1] @ v[:, head])
    return (
        torch.cat(heads) @ weights["attention.out_proj.weight"].T
        + weights["attention.out_proj.bias"]
    )


def weigh_by_hand(weights: Mapping[str, Tensor], query: Tensor, keys: Tensor) -> Tensor:
    """DIN's sum of one example: [N], [n, N] -> [N]."""
    total = torch.zeros(DIMENSION)
    for key in keys:
        pair = torch.cat([query, key, query - key, query * key])
        hidden = torch.relu(weights["hidden.0.weight"] @ pair + weights["hidden.0.bias"])
        total = total + (weights["weight.weight"] @ hidden + weights["weight.bias"]) * key
    return total


def embed_by_hand(ranker: Ranker, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Embeddings [B, F, N], example by example."""
    pools = {
        name: dict(ranker.sequences.pools[f"{name}_pool"].named_parameters())
        for name in ("history", "saved")
    }
    rows = []
    for ids in zip(*(lists_of(batch, name) for name in FEATURES), strict=True):
        of = dict(zip(FEATURES, ids, strict=True))
        shop = tables["table_shop"][of["shop"]][0]
        vectors = {name: tables[f"table_{name}"][of[name]][0] for name in ("color", "user")} | {
            "shop": shop
        }
        vectors["history"] = attend_by_hand(
            pools["history"], shop, tables["table_history"][of["history"][-2:]]
        )
        vectors["saved"] = weigh_by_hand(pools["saved"], shop, tables["table_shop"][of["saved"]])
        rows.append(torch.stack([vectors[name] for name in FEATURES]))
    return torch.stack(rows)


@cache
def reference(table_optimizer: str, towers: bool = False) -> dict[str, Tensor]:
    """The same training in one process: no TorchRec, no positions."""
    settings, model = train_settings(1), MODEL.model_copy(update={"towers": towers})
    ranker = build_ranker(SCHEMA, model, ALONE, SEED)
    tables = {
        n.split(".")[-2]: p for n, p in ranker.named_parameters() if n.startswith("embeddings.")
    }
    dense = [p for n, p in ranker.named_parameters() if not n.startswith("embeddings.")]
    start = settings.initial_accumulator / settings.global_batch_size**2
    sums = [torch.full_like(table, start) for table in tables.values()]
    for batch in shares(0, 1):
        representation = ranker.represent_embedded(
            batch.dense, embed_by_hand(ranker, tables, batch)
        )
        loss = binary_cross_entropy_with_logits(ranker.head(representation), batch.label)
        gradients = torch.autograd.grad(loss, [*tables.values(), *dense])
        with torch.no_grad():
            for parameter, gradient in zip(dense, gradients[len(tables) :], strict=True):
                parameter -= settings.dense_learning_rate * gradient
            for table, total, gradient in zip(
                tables.values(), sums, gradients[: len(tables)], strict=True
            ):
                square = gradient.square()
                total += (
                    square.mean(dim=1, keepdim=True)
                    if table_optimizer == "rowwise_adagrad"
                    else square
                )
                table -= settings.table_learning_rate * gradient / (total.sqrt() + EPSILON)
    return {name: value.detach() for name, value in ranker.state_dict().items()}


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_lookups_and_attention_by_hand(
    trained: dict[str, dict[str, Tensor]], case: str
) -> None:
    expected = reference(case.split("-")[1])
    assert "embeddings.embedding_bags.table_saved.weight" not in expected
    assert_same(trained[case], expected)


def save_and_resume(kinds: list[str], folder: Path) -> list[dict[str, Tensor]]:
    """Train, save; load into the next kind, save; then train every engine on: all weights."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    first, second, _ = shares(rank, world_size)
    engines: list[Engine] = []
    for index, kind in enumerate(kinds):
        settings = train_settings(world_size, sharding=kind)
        engine = Engine(
            build_ranker(SCHEMA, MODEL, None, SEED + index, "meta"), settings, SEED + index
        )
        if engines:
            engine.load(folder / str(index))
        else:
            engine.train_step(first, engine.serving_loss)
        engine.save(folder / str(index + 1))
        engines.append(engine)
    return [train(engine, [second]) for engine in engines]


def test_checkpoints_resume_in_every_other_kind(tmp_path: Path) -> None:
    first, *others = run_on_ranks(save_and_resume, ([*KINDS, "data_parallel"], tmp_path), 2, 1)[0]
    for other in others:
        assert_same(other, first)


def rows_looked_up() -> tuple[dict[str, list[int]], dict[str, set[int]]]:
    """On every rank: the rows that a step has touched by what differential checkpoints keep, and by
    the batch."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    engine = Engine(
        build_ranker(SCHEMA, MODEL, None, SEED, "meta"), train_settings(world_size), SEED
    )
    touched, wanted = TouchedRows(engine.module), {"history": set[int](), "shop": set[int]()}
    engine.train_step(shares(rank, world_size)[0], engine.serving_loss)
    whole = shares(0, 1)[0]
    for name, table, length in (
        ("history", "history", 2),
        ("saved", "shop", 4),
        ("shop", "shop", 1),
    ):
        wanted[table] |= {one for ids in lists_of(whole, name) for one in ids[-length:]}
    mine = {
        name.split(".")[-2].removeprefix("table_"): rows.tolist()
        for name, rows, _ in touched.rows()
    }
    ranks: list[dict[str, list[int]]] = [{}] * world_size
    distributed.all_gather_object(ranks, mine)
    return {
        table: sorted(row for one in ranks for row in one.get(table, [])) for table in wanted
    }, wanted


def test_differential_checkpoints_know_the_rows_of_every_position() -> None:
    found, wanted = run_on_ranks(rows_looked_up, (), 2, 1)[0]
    assert found == {table: sorted(rows) for table, rows in wanted.items()}


def train_on_hosts(partition: Partition) -> dict[str, dict[str, Tensor]]:
    """On every rank: weights with towers on hosts of their own, and with the towers replicated."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    model, states = MODEL.model_copy(update={"towers": True}), {}
    for name, transform in (("on hosts", True), ("replicated", False)):
        settings = train_settings(
            world_size, tower_transform=transform, sharding="table_wise", ranks_per_host=1
        )
        engine = tower_engine(
            build_ranker(SCHEMA, model, partition, SEED, "meta"), settings, SEED, partition
        )
        states[name] = train(engine, shares(rank, world_size))
    return states


def test_a_tower_with_sequence_and_target_attends_on_its_host() -> None:
    for state in run_on_ranks(train_on_hosts, (ALONE,), 2, 1)[0].values():
        assert_same(state, reference("adagrad", towers=True))


def test_a_sequence_in_another_tower_than_its_target_is_refused() -> None:
    apart = Partition("manual", [["color", "user", "history"], ["shop", "saved"]], list(FEATURES))
    with pytest.raises(
        InputError, match=r"sequence history and its target shop are in different towers; put them"
    ):
        run_on_ranks(train_on_hosts, (apart,), 2, 1)
