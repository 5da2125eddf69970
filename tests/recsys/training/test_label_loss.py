"""The loss of several tasks is the weighted sum of theirs; an example without a label adds
nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.config import InputError
from recsys.models.factory import build_ranker
from recsys.training.label_loss import label_loss
from recsys.training.task_weights import check_task_weights
from tests.support.distilled import MODEL, ROWS, SCHEMA_OF_TWO, batch, batch_of_two

WEIGHT = 2.5


def plain_entropy(logit: Tensor, label: Tensor) -> Tensor:
    """Sum over the rows that have a label, picked out by hand."""
    known = [row for row in range(len(label)) if not label[row].isnan()]
    return binary_cross_entropy_with_logits(logit[known], label[known], reduction="sum")


def test_gradient_of_two_tasks_is_the_sum_of_theirs() -> None:
    ranker = build_ranker(SCHEMA_OF_TWO, MODEL, None, seed=3)
    assert ranker.further_output is not None
    for head in (ranker.output, ranker.further_output):  # else they give the backbone no gradient
        nn.init.ones_(head.weight)
    one = batch_of_two(torch.arange(ROWS) % 3 == 0)
    parameters = dict(ranker.named_parameters())
    outputs = ranker(one.dense, one.sparse)
    whole = torch.autograd.grad(
        label_loss(outputs, one, {"conversion": WEIGHT}).sum(),
        list(parameters.values()),
        retain_graph=True,
    )
    click = plain_entropy(outputs["serving"], one.label)
    conversion = plain_entropy(outputs["conversion"], one.further_labels["conversion"])
    parts = [
        torch.autograd.grad(
            term, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        for term in (click, conversion)
    ]
    for name, total, first, second in zip(parameters, whole, *parts, strict=True):
        torch.testing.assert_close(total, first + WEIGHT * second, msg=name)
    assert parts[1][list(parameters).index("over_arch.0.weight")].any()
    assert not parts[1][list(parameters).index("output.weight")].any()
    assert not parts[0][list(parameters).index("further_output.weight")].any()


@given(
    st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
)
@settings(max_examples=50)
def test_rows_without_a_label_add_nothing(
    without_click: list[bool], without_conversion: list[bool]
) -> None:
    missing = {
        "serving": torch.tensor(without_click),
        "conversion": torch.tensor(without_conversion),
    }
    one = batch_of_two(missing["conversion"])
    one.label = torch.where(missing["serving"], torch.nan, one.label)
    draw = torch.Generator().manual_seed(4)
    outputs = {name: torch.randn(ROWS, generator=draw).requires_grad_() for name in missing}
    losses = label_loss(outputs, one, {"conversion": WEIGHT})
    losses.sum().backward()
    labels = {"serving": one.label, "conversion": one.further_labels["conversion"]}
    expected = plain_entropy(outputs["serving"], labels["serving"])
    expected = expected + WEIGHT * plain_entropy(outputs["conversion"], labels["conversion"])
    torch.testing.assert_close(losses.sum(), expected)
    assert not losses[missing["serving"] & missing["conversion"]].any()
    for name, logit in outputs.items():
        assert logit.grad is not None
        assert torch.equal(logit.grad == 0, missing[name])


def test_one_task_has_the_bits_of_plain_cross_entropy() -> None:
    one = batch()
    logits = [
        torch.randn(ROWS, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(2)
    ]
    losses = label_loss({"serving": logits[0]}, one, {})
    expected = binary_cross_entropy_with_logits(logits[1], one.label, reduction="none")
    assert torch.equal(losses, expected)
    losses.sum().backward()
    expected.sum().backward()
    assert logits[0].grad is not None and logits[1].grad is not None
    assert torch.equal(logits[0].grad, logits[1].grad)


@pytest.mark.parametrize("task", ["click", "cart"])
def test_only_further_tasks_are_weighed(task: str) -> None:
    def where(key: str) -> str:
        return f"here: key {key!r}"

    check_task_weights({"conversion": 2.0}, ["click", "conversion"], where)
    with pytest.raises(
        InputError, match=rf"here: key 'task_weights.{task}': .*main one, click; .*are: conversion"
    ):
        check_task_weights({task: 2.0}, ["click", "conversion"], where)
