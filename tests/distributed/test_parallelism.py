"""Every kind of sharding on 1, 2 and 4 gloo ranks against an unsharded plain-PyTorch reference."""

import math
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import InputError
from recsys.data.loader import Batch
from recsys.models.factory import build_ranker
from recsys.models.initial_tables import initial_rows
from recsys.models.partition_file import Partition
from recsys.models.ranker import table_configs
from recsys.towers.engine import tower_engine
from recsys.training import engine as engine_module
from recsys.training.engine import Engine, Part
from recsys.training.launch import run_on_ranks
from recsys.training.non_finite import NonFiniteLossError
from recsys.training.settings import TrainSettings
from tests.support.launches import Case, run_cases
from tests.support.sharded import (
    CASES,
    COLUMN_KINDS,
    DIMENSION,
    FEATURES,
    KINDS,
    MIXED,
    MODEL,
    OPTIMIZERS,
    SCHEMA,
    SEED,
    SIZES,
    TOLERANCE,
    share,
    train_settings,
)

EPSILON = 1e-8
PARTS: list[Part] = ["dense", "tables", "all"]  # that learn in the steps of SIZES
IN_PARTS = {
    f"{case} in parts": CASES[case]
    for case in [*(f"{kind}-sgd" for kind in KINDS), "mixed-adagrad", "row_wise-rowwise_adagrad"]
}
FACTORS = {"table_shop": 0.5, "table_color": 3.0}
WITH_FACTORS = {
    f"{case} with factors": {**CASES[case], "table_rate_factors": FACTORS}
    for case in [
        *(f"{kind}-adagrad" for kind in KINDS),
        *("mixed-adagrad", "data_parallel-sgd", "row_wise-rowwise_adagrad"),
    ]
}
DYADIC_SIZES = [8, 4, 2]  # on 4 ranks two have no row of the last one


def train_all(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """On every rank: each case's weights after SIZES, and its plan."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    results = {}
    for name, changes in cases.items():
        engine = Engine(
            build_ranker(SCHEMA, MODEL, None, SEED, "meta"),
            train_settings(world_size, **changes),
            SEED,
        )
        for step, (rows, part) in enumerate(zip(SIZES, parts_of(name), strict=True)):
            with engine.learning(part):
                engine.train_step(share(rows, step, rank, world_size), engine.serving_loss)
        results[name] = {"state": engine.gather_state(), "plan": engine.plan_summary()}
    return results


@cache
def trained(world_size: int, run: int = 0) -> dict[str, dict[str, Any]]:
    """Results of CASES; each ``run`` is a launch of its own."""
    return run_on_ranks(train_all, (CASES | IN_PARTS | WITH_FACTORS,), world_size, 1)[0]


def parts_of(case: str) -> list[Part]:
    return PARTS if case in IN_PARTS else ["all"] * len(SIZES)


@cache
def reference(
    table_optimizer: str, in_parts: bool = False, with_factors: bool = False
) -> dict[str, Tensor]:
    """The same training in one process, without TorchRec's sharding or FBGEMM."""
    settings = train_settings(1)
    ranker = build_ranker(SCHEMA, MODEL, None, SEED)
    tables = [p for n, p in ranker.named_parameters() if n.startswith("embeddings.")]
    names = [n.split(".")[-2] for n, _ in ranker.named_parameters() if n.startswith("embeddings.")]
    rates = [FACTORS.get(name, 1.0) * 0.1 if with_factors else 0.1 for name in names]
    dense = [p for n, p in ranker.named_parameters() if not n.startswith("embeddings.")]
    start = settings.initial_accumulator / settings.global_batch_size**2
    sums = [torch.full_like(table, start) for table in tables]
    parts = PARTS if in_parts else ["all"] * len(SIZES)
    for step, (rows, part) in enumerate(zip(SIZES, parts, strict=True)):
        batch = share(rows, step, 0, 1)
        loss = binary_cross_entropy_with_logits(
            ranker(batch.dense, batch.sparse)["serving"], batch.label
        )
        gradients = torch.autograd.grad(loss, [*tables, *dense])
        with torch.no_grad():
            for parameter, gradient in zip(dense, gradients[len(tables) :], strict=True):
                if part != "tables":
                    parameter -= settings.dense_learning_rate * gradient
            if part == "dense":
                continue
            for table, total, rate, gradient in zip(
                tables, sums, rates, gradients[: len(tables)], strict=True
            ):
                table -= rate * table_step(table_optimizer, total, gradient)
    return {name: value.detach() for name, value in ranker.state_dict().items()}


def table_step(table_optimizer: str, total: Tensor, gradient: Tensor) -> Tensor:
    """What a table's optimiser multiplies with the learning rate; adds to its state ``total``."""
    if table_optimizer == "sgd":
        return gradient
    square = gradient.square()
    total += square.mean(dim=1, keepdim=True) if table_optimizer == "rowwise_adagrad" else square
    return gradient / (total.sqrt() + EPSILON)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("case", CASES | IN_PARTS | WITH_FACTORS)
def test_weights_equal_plain_pytorch(case: str, world_size: int) -> None:
    state = trained(world_size)[case]["state"]
    optimizer = case.split("-")[1].split()[0]
    expected = reference(optimizer, case in IN_PARTS, case in WITH_FACTORS)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=TOLERANCE, msg=name)


def test_two_runs_are_bitwise_equal() -> None:
    first, second = trained(4), trained(4, run=1)
    assert all(
        torch.equal(value, second[case]["state"][name])
        for case in CASES
        for name, value in first[case]["state"].items()
    )


def test_the_kinds_asked_for_are_the_kinds_that_run() -> None:
    plans = {
        case: {row["table"]: row for row in result["plan"]} for case, result in trained(4).items()
    }
    assert {table: row["kind"] for table, row in plans["mixed-adagrad"].items()} == MIXED
    for kind in KINDS:
        assert {row["kind"] for row in plans[f"{kind}-sgd"].values()} == {kind}
    assert plans["planner-sgd"]["table_user"]["kind"] == "column_wise"
    for kind in ("table_row_wise", "table_column_wise"):
        hosts = {frozenset(row["ranks"]) for row in plans[f"{kind}-sgd"].values()}
        assert hosts == {frozenset({0, 1}), frozenset({2, 3})}, kind
    for kind in ("row_wise", "grid_shard", "data_parallel"):
        assert all(set(row["ranks"]) == {0, 1, 2, 3} for row in plans[f"{kind}-sgd"].values()), kind
    assert (
        plans["data_parallel-sgd"]["table_shop"]["bytes"]
        == 4 * plans["row_wise-sgd"]["table_shop"]["bytes"]
    )


class Products(nn.Module):
    """The sum of all products between the dense vector and the embeddings: its gradients are sums
    of few bits."""

    def __init__(self, table_device: str) -> None:
        super().__init__()
        self.project = nn.Linear(SCHEMA.dense_width, DIMENSION, bias=False)
        nn.init.constant_(self.project.weight, 0.5)
        self.embeddings = EmbeddingBagCollection(
            tables=table_configs(SCHEMA, DIMENSION), device=torch.device(table_device)
        )

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        pooled = self.embeddings(sparse).to_dict()
        # [B, F + 1, N]
        vectors = torch.stack([self.project(dense), *(pooled[name] for name in FEATURES)], dim=1)
        squared_sum, squares = vectors.sum(dim=1).square(), vectors.square().sum(dim=1)
        return {"serving": (squared_sum - squares).sum(dim=1) / 2}


def signed(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """The output, less for the clicked: [B]."""
    return outputs["serving"] * (1 - 2 * batch.label)


def few_bits(*arguments: Any) -> Tensor:
    """Initial rows rounded to sixteenths."""
    return (initial_rows(*arguments) * 16).round() / 16


def train_dyadic(kinds: list[str]) -> dict[str, dict[str, Tensor]]:
    """On every rank: weights by kind, of training in which every sum is exact in float32."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    states = {}
    for kind in kinds:
        settings = train_settings(
            world_size, sharding=kind, table_learning_rate=1.0, dense_learning_rate=0.5
        )
        with mock.patch.object(engine_module, "initial_rows", few_bits):
            engine = Engine(Products("meta"), settings, SEED)
        for step, rows in enumerate(DYADIC_SIZES):
            engine.train_step(share(rows, step, rank, world_size, dyadic=True), signed)
        states[kind] = engine.gather_state()
    return states


def dyadic_reference() -> dict[str, Tensor]:
    model = Products("cpu")
    weights = dict(model.embeddings.named_parameters())
    with torch.no_grad():
        for name, (rows, _) in FEATURES.items():
            table = f"table_{name}"
            weights[f"embedding_bags.{table}.weight"].copy_(
                few_bits(SEED, table, rows, DIMENSION, 0, rows)
            )
    groups = [
        {"params": model.embeddings.parameters(), "lr": 1.0},
        {"params": model.project.parameters(), "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups)
    for step, rows in enumerate(DYADIC_SIZES):
        batch = share(rows, step, 0, 1, dyadic=True)
        optimizer.zero_grad()
        signed(model(batch.dense, batch.sparse), batch).mean().backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_exact_sums_give_the_same_bits_in_every_plan_and_world(world_size: int) -> None:
    expected = dyadic_reference()
    for kind, state in run_on_ranks(train_dyadic, (KINDS,), world_size, 1)[0].items():
        for name, value in expected.items():
            assert torch.equal(state[name], value), (kind, name)


def save_and_resume(optimizer: str, kinds: list[str], folder: Path) -> list[dict[str, Tensor]]:
    """Train, save; load into the next kind, save; then train every engine on: all weights."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    engines = []
    for index, kind in enumerate(kinds):
        settings = train_settings(world_size, sharding=kind, table_optimizer=optimizer)
        engine = Engine(
            build_ranker(SCHEMA, MODEL, None, SEED + index, "meta"), settings, SEED + index
        )
        if engines:
            engine.load(folder / str(index))
        else:
            engine.train_step(share(32, 0, rank, world_size), engine.serving_loss)
        engine.save(folder / str(index + 1))
        engines.append(engine)
    for engine in engines:
        engine.train_step(share(13, 1, rank, world_size), engine.serving_loss)
    return [engine.gather_state() for engine in engines]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[dict[str, Tensor]]]]:
    """Weights of every engine of save_and_resume by rank, by optimiser."""
    cases: dict[str, Case] = {}
    for optimizer in OPTIMIZERS:
        kinds = [
            kind for kind in KINDS if optimizer != "rowwise_adagrad" or kind not in COLUMN_KINDS
        ]
        cases[optimizer] = (
            2,
            (optimizer, [*kinds, "data_parallel"], tmp_path_factory.mktemp(optimizer)),
        )
    return run_cases(save_and_resume, cases)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tables_and_their_optimizer_resume_in_every_other_kind(
    optimizer: str, resumed: dict[str, list[list[dict[str, Tensor]]]]
) -> None:
    first, *others = resumed[optimizer][0]
    for other in others:
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=TOLERANCE, msg=name)


def build(settings: TrainSettings, partition: Partition | None = None) -> dict[str, dict[str, Any]]:
    """The plan of an engine, by table."""
    model = MODEL.model_copy(update={"towers": partition is not None, "tower_dimension": 4})
    engine = tower_engine(
        build_ranker(SCHEMA, model, partition, SEED, "meta"), settings, SEED, partition
    )
    return {row["table"]: row for row in engine.plan_summary()}


def test_a_fixed_table_leaves_its_tower_and_the_others_stay_together() -> None:
    partition = Partition("manual", [["color", "history", "user"], ["shop"]], list(FEATURES))
    settings = train_settings(
        2, sharding="data_parallel", table_sharding={"table_history": "row_wise"}
    )
    plan = run_on_ranks(build, (settings, partition), 2, 1)[0]
    assert plan["table_history"]["kind"] == "row_wise"
    assert {plan[table]["kind"] for table in ("table_color", "table_user", "table_shop")} == {
        "table_wise"
    }
    assert (
        plan["table_color"]["ranks"] == plan["table_user"]["ranks"] != plan["table_shop"]["ranks"]
    )


@pytest.mark.parametrize("kind", COLUMN_KINDS)
def test_split_columns_with_rowwise_adagrad_are_refused(kind: str) -> None:
    for changes in ({"sharding": kind}, {"table_sharding": {"table_shop": kind}}):
        settings = train_settings(1).model_copy(
            update={"table_optimizer": "rowwise_adagrad", **changes}  # settings refuse it, too
        )
        with pytest.raises(
            InputError, match=rf"{kind} changes what rowwise_adagrad computes.*table_row_wise"
        ):
            run_on_ranks(build, (settings,), 1, 1)


def test_other_refusals() -> None:
    with pytest.raises(InputError, match=r"no table 'table_shp'; did you mean 'table_shop'\?$"):
        run_on_ranks(build, (train_settings(1, table_sharding={"table_shp": "row_wise"}),), 1, 1)
    message = r"key 'table_rate_factors': no table 'table_shp'; did you mean 'table_shop'\?$"
    with pytest.raises(InputError, match=message):
        run_on_ranks(build, (train_settings(1, table_rate_factors={"table_shp": 2.0}),), 1, 1)
    with pytest.raises(InputError, match="memory_gb"):
        run_on_ranks(build, (train_settings(1, sharding="data_parallel", memory_gb=1e-6),), 1, 1)


def train_over_a_bad_batch(
    skip: bool, bad_rank: int, with_bad: bool
) -> tuple[dict[str, Tensor], list[float], int]:
    """Train with one batch whose dense input has a NaN on one rank: weights, losses, batches
    skipped."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    settings = train_settings(world_size, skip_non_finite_batches=skip, table_sharding=MIXED)
    engine = Engine(build_ranker(SCHEMA, MODEL, None, SEED, "meta"), settings, SEED)
    losses = []
    for step, rows in enumerate(SIZES):
        if step == 1 and with_bad:
            bad = share(rows, 7, rank, world_size)
            bad.dense[0, 0] = math.nan if rank == bad_rank else 0.0
            losses.append(engine.train_step(bad, engine.serving_loss))
        losses.append(engine.train_step(share(rows, step, rank, world_size), engine.serving_loss))
    return engine.gather_state(), losses, engine.skipped_batches


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_non_finite_batch_is_skipped_by_all_ranks(world_size: int) -> None:
    cases = {
        "bad": (world_size, (True, world_size - 1, True)),
        "clean": (world_size, (False, 0, False)),
    }
    found = run_cases(train_over_a_bad_batch, cases)
    results, clean = found["bad"], found["clean"][0]
    for _, losses, skipped in results:
        assert [math.isnan(loss) for loss in losses] == [False, True, False, False]
        assert skipped == 1
    assert all(torch.equal(value, results[0][0][name]) for name, value in clean[0].items())


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_non_finite_loss_ends_the_run_with_its_step(world_size: int) -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"^step 2: .*the dense input, the outputs"
    ) as caught:
        run_on_ranks(train_over_a_bad_batch, (False, world_size - 1, True), world_size, 1)
    assert caught.value.step == 2
    assert caught.value.sources == ("the dense input", "the outputs")
