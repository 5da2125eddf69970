"""The engine on 1 and 2 gloo ranks against an unsharded plain-PyTorch reference."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import InputError
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import ModelSettings
from recsys.towers.engine import tower_engine
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings
from tests.support.engines import (
    FEATURES,
    SCHEMA,
    SEED,
    STEPS,
    make_engine,
    model_settings,
    share,
    train_settings,
    train_steps,
)
from tests.support.launches import Case, run_cases

TOLERANCE = 1e-6
SIZES = [32, 32, 13]  # rows of the global batches; the last one is uneven on 2 ranks
PARTITION = Partition("manual", [["color", "history"], ["shop"]], list(FEATURES))


def train(
    settings: TrainSettings, model: ModelSettings, partition: Partition | None
) -> dict[str, Any]:
    """On every rank: train on SIZES, return the gathered weights and the losses."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    engine = tower_engine(
        build_ranker(SCHEMA, model, partition, SEED, "meta"), settings, SEED, partition
    )
    losses = []
    for step, rows in enumerate(SIZES):
        batch = share(rows, step, rank, world_size)
        assert engine.predict(batch).shape == batch.label.shape
        losses.append(engine.train_step(batch, engine.serving_loss))
    return {"state": engine.gather_state(), "losses": losses, "plan": engine.plan_summary()}


def reference(
    settings: TrainSettings, model: ModelSettings, partition: Partition | None
) -> dict[str, Tensor]:
    """The same training in plain PyTorch with SGD."""
    ranker = build_ranker(SCHEMA, model, partition, SEED)
    tables = [p for n, p in ranker.named_parameters() if n.startswith("embeddings.")]
    dense = [p for n, p in ranker.named_parameters() if not n.startswith("embeddings.")]
    groups = [{"params": tables, "lr": settings.table_learning_rate}, {"params": dense}]
    optimizer = torch.optim.SGD(groups, lr=settings.dense_learning_rate)
    for step, rows in enumerate(SIZES):
        batch = share(rows, step, 0, 1)
        loss = binary_cross_entropy_with_logits(
            ranker(batch.dense, batch.sparse)["serving"], batch.label
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ranker.state_dict()


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=TOLERANCE, msg=name)


SHARDINGS = ["table_wise", "row_wise", "column_wise", "planner"]
ARCHITECTURES = ["dlrm", "dcn", "wukong"]  # with towers


@cache
def trained() -> dict[Any, list[dict[str, Any]]]:
    """Results by rank, by (sharding, ranks), and by architecture with towers on two ranks."""
    cases: dict[Any, Case] = {
        (sharding, ranks): (
            ranks,
            (train_settings(ranks, sharding=sharding), model_settings(), None),
        )
        for sharding in SHARDINGS
        for ranks in (1, 2)
    }
    for architecture in ARCHITECTURES:
        cases[architecture] = (
            2,
            (train_settings(2), model_settings(architecture, towers=True), PARTITION),
        )
    return run_cases(train, cases)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_weights_equal_plain_pytorch(sharding: str, world_size: int) -> None:
    results = trained()[sharding, world_size]
    assert results[1:] == [r | {"state": {}} for r in results[1:]]
    assert_same(results[0]["state"], reference(train_settings(world_size), model_settings(), None))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_towers_stay_together_and_equal_plain_pytorch(architecture: str) -> None:
    results = trained()[architecture]
    model = model_settings(architecture, towers=True)
    assert_same(results[0]["state"], reference(train_settings(2), model, PARTITION))
    ranks = {row["table"]: row["ranks"] for row in results[0]["plan"]}
    assert ranks["table_color"] == ranks["table_history"] != ranks["table_shop"]


def save_and_resume(
    settings: TrainSettings, model: ModelSettings, directory: Path
) -> tuple[dict, dict]:
    """Train, save, train on; load into a fresh engine of another plan, train on: both states."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    first = Engine(build_ranker(SCHEMA, model, None, SEED, "meta"), settings, SEED)
    first.train_step(share(32, 0, rank, world_size), first.serving_loss)
    first.save(directory)
    other = settings.model_copy(update={"sharding": "row_wise"})
    second = Engine(build_ranker(SCHEMA, model, None, SEED + 1, "meta"), other, SEED + 1)
    second.load(directory)
    for engine in (first, second):
        engine.train_step(share(13, 1, rank, world_size), engine.serving_loss)
    return first.gather_state(), second.gather_state()


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumes_from_a_checkpoint_with_another_plan(world_size: int, tmp_path: Path) -> None:
    changes = {
        "table_optimizer": "rowwise_adagrad",
        "dense_optimizer": "adam",
        "sharding": "table_wise",
    }
    settings = train_settings(world_size, **changes)
    first, second = run_on_ranks(
        save_and_resume, (settings, model_settings(), tmp_path / "saved"), world_size, 1
    )[0]
    assert_same(second, first)


class WithUnusedHead(nn.Module):
    """A ranker and a head that the loss does not read, as a student's plain arm has it."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker
        self.extra = nn.Linear(ranker.representation_size, 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        representation = self.ranker.represent(dense, sparse)
        return {
            "serving": self.ranker.head(representation),
            "extra": self.extra(representation).squeeze(1),
        }


def train_with_unused_head(settings: TrainSettings) -> dict[str, Tensor]:
    """Two engines in one launch, bfloat16, several steps: weights of the second."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    state: dict[str, Tensor] = {}
    for _ in range(2):
        torch.manual_seed(SEED)
        model = WithUnusedHead(build_ranker(SCHEMA, model_settings(), None, SEED, "meta"))
        engine = Engine(model, settings, SEED)
        for step, rows in enumerate(SIZES):
            batch = share(rows, step, rank, world_size)
            engine.predict(batch)
            engine.train_step(batch, engine.serving_loss)
        state = engine.gather_state()
    return state


def test_unused_head_and_bfloat16() -> None:
    settings = train_settings(
        2, dense_optimizer="adam", table_optimizer="rowwise_adagrad", bf16=True
    )
    state = run_on_ranks(train_with_unused_head, (settings,), 2, 1)[0]
    assert "ranker.embeddings.embedding_bags.table_shop.weight" in state
    assert all(torch.isfinite(value).all() for value in state.values())
    again = run_on_ranks(train_with_unused_head, (settings,), 2, 1)[0]
    assert all(torch.equal(value, again[name]) for name, value in state.items())


def fail_on_rank_1(message: str) -> None:
    if distributed.get_rank() == 1:
        raise InputError(message)
    distributed.barrier()


def raise_key_error() -> None:
    raise KeyError("lost")


def test_error_of_a_rank_is_raised_as_itself() -> None:
    with pytest.raises(InputError, match=r"^params/x\.yaml: wrong$"):
        run_on_ranks(fail_on_rank_1, ("params/x.yaml: wrong",), 2, 1)
    with pytest.raises(KeyError, match="lost"):
        run_on_ranks(raise_key_error, (), 2, 1)


def test_plan_refusals() -> None:
    too_small = train_settings(1, memory_gb=1e-6, sharding="table_wise")
    with pytest.raises(InputError, match="memory_gb"):
        run_on_ranks(train, (too_small, model_settings(), None), 1, 1)
    with pytest.raises(InputError, match="memory_gb"):
        run_on_ranks(train, (train_settings(1, memory_gb=1e-6), model_settings(), None), 1, 1)


def clipped(limit: float) -> dict[str, Tensor]:
    """On every rank: weights after STEPS whose gradients are over ``limit``."""
    settings = train_settings(distributed.get_world_size(), dense_clip_norm=limit)
    engine = make_engine(settings)
    train_steps(engine, 0, STEPS)
    return engine.gather_state()


def test_the_mean_gradient_over_ranks_is_what_is_clipped() -> None:
    found = {ranks: run_on_ranks(clipped, (0.01,), ranks, 1)[0] for ranks in (1, 2)}
    for name, value in found[1].items():
        torch.testing.assert_close(found[2][name], value, rtol=0, atol=1e-6, msg=name)
