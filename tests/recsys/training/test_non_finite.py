"""NaN in embeddings and gradients: named, stopped before an update where that can be, left out by
all ranks alike."""

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.models.factory import build_ranker
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.non_finite import (
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteGuard,
    NonFiniteLossError,
)
from tests.support.engines import SCHEMA, model_settings, share, train_settings
from tests.support.launches import run_cases
from tests.support.one_table import SEED, Small, make_batch
from tests.support.one_table import train_settings as small_settings

BAD_STEP = 2


class BrokenBackward(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0] * math.nan


def caught_on_one_rank(where: str) -> tuple[NonFiniteError, list[str]]:
    """The error of a step with a NaN at ``where``, and the weights that it changed."""
    engine = Engine(Small(), small_settings(), SEED)
    engine.train_step(make_batch(0), engine.serving_loss)
    if where == "table":
        weight = engine.gather_state()["embeddings.embedding_bags.table_a.weight"]
        with torch.no_grad():
            engine.module.get_parameter("embeddings.embedding_bags.table_a.weight")[:] = (
                weight * math.nan
            )
    if where == "bias":
        engine.module.get_parameter("layer.bias").register_hook(
            lambda gradient: gradient * math.nan
        )
    before = engine.gather_state()

    def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        losses = engine.serving_loss(outputs, batch)
        return BrokenBackward.apply(losses) if where == "loss" else losses  # type: ignore[return-value]

    with pytest.raises(NonFiniteError) as error:
        engine.train_step(make_batch(1), loss)
    after = engine.gather_state()
    changed = [
        name
        for name, value in after.items()
        if not torch.equal(value.nan_to_num(), before[name].nan_to_num())
    ]
    return error.value, changed


@pytest.mark.parametrize(
    ("where", "kind", "sources", "features", "changed"),
    [
        ("table", NonFiniteLossError, ("the outputs", "the embeddings"), ("a",), []),
        ("loss", NonFiniteGradientError, ("the embeddings",), ("a",), []),
        (
            "bias",
            NonFiniteGradientError,
            ("layer.bias",),
            (),
            ["embeddings.embedding_bags.table_a.weight"],
        ),
    ],
)
def test_the_step_and_what_held_it_are_named(
    where: str,
    kind: type[NonFiniteError],
    sources: tuple[str, ...],
    features: tuple[str, ...],
    changed: list[str],
) -> None:
    error, found = run_on_ranks(caught_on_one_rank, (where,), 1, 1)[0]
    assert type(error) is kind
    assert (error.step, error.sources, error.features) == (2, sources, features)
    assert found == changed
    again = pickle.loads(pickle.dumps(error.located("w1", ["price"])))
    assert str(again).startswith("step 2, window w1: the ")


def test_columns_of_the_dense_input_get_their_names() -> None:
    error = NonFiniteLossError(3, ["the dense input"], ["dense column 1", "dense column 7"])
    assert error.located("w", ["age", "price"]).features == ("price", "dense column 7")


def train_over_a_bad_gradient(
    optimizer: str, with_bad: bool, skip: bool
) -> tuple[dict[str, Tensor], int]:
    """Four steps and, if ``with_bad``, one more whose gradient is NaN on the last rank."""
    settings = train_settings(
        2, table_optimizer=optimizer, sharding="row_wise", skip_non_finite_batches=skip
    )
    engine = Engine(build_ranker(SCHEMA, model_settings(), None, SEED, "meta"), settings, SEED)

    def broken(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        losses = engine.serving_loss(outputs, batch)
        return BrokenBackward.apply(losses) if engine.rank == 1 else losses  # type: ignore[return-value]

    for step in range(4):
        if with_bad and step == BAD_STEP:
            loss = engine.train_step(share(32, 9, engine.rank, engine.world_size), broken)
            assert math.isnan(loss)
        engine.train_step(share(32, step, engine.rank, engine.world_size), engine.serving_loss)
    return engine.gather_state(), engine.skipped_batches


def test_bad_gradient_of_one_rank_is_skipped_by_all_and_leaves_no_trace() -> None:
    optimizers = ("sgd", "rowwise_adagrad")
    cases = {
        (o, with_bad): (2, (o, with_bad, True)) for o in optimizers for with_bad in (True, False)
    }
    found = run_cases(train_over_a_bad_gradient, cases)
    for optimizer in optimizers:
        expected, _ = found[optimizer, False][0]
        weights = found[optimizer, True][0][0]
        assert [skipped for _, skipped in found[optimizer, True]] == [1, 1], optimizer
        assert [
            name for name, value in expected.items() if not torch.equal(value, weights[name])
        ] == [], optimizer


def test_bad_gradient_ends_the_run_with_its_step() -> None:
    with pytest.raises(
        NonFiniteGradientError, match=r"^step 3: the gradient is not finite: .*embeddings; features"
    ):
        run_on_ranks(train_over_a_bad_gradient, ("sgd", True, False), 2, 1)


def test_finite_gradients_whose_sum_is_not_finite_are_no_error() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 3e38)
    assert not NonFiniteGuard(skip=False).skips_gradients({"weight": weight})
    weight.grad = torch.tensor([0.0, math.inf, -math.inf, 0.0])
    with pytest.raises(NonFiniteGradientError, match="weight"):
        NonFiniteGuard(skip=False).skips_gradients({"weight": weight})
