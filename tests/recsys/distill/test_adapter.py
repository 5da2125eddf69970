"""The adapter brings a drifted teacher up to date, learns from the label alone, and is undone with
its batch."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.distill.adapter import StudentAdapter
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings
from recsys.distill.heads import DistilledRanker
from recsys.distill.losses import DistillationLoss
from recsys.evaluation.metrics import auc, normalized_entropy
from recsys.models.factory import build_ranker
from recsys.training.non_finite import NonFiniteGradientError
from recsys.training.settings import TrainSettings
from tests.support.comparing import same
from tests.support.distilled import MODEL, ROWS, SCHEMA, batch, weights_of

OFFSET = 1.5


def settings_with(**changes: Any) -> DistillationSettings:
    return DistillationSettings(
        mode="auxiliary_adapter", head_layers=[5], adapter=AdapterSettings.model_validate(changes)
    )


def adapter_with(train: dict[str, Any] | None = None, **changes: Any) -> StudentAdapter:
    return StudentAdapter(
        settings_with(**changes), TrainSettings.model_validate(train or {}), seed=1, world_size=1
    )


def weights(adapter: StudentAdapter) -> list[Tensor]:
    """Weights and optimiser state, copied."""
    return [value for task in adapter.networks for value in weights_of(adapter, task)]


def gradient_norm(adapter: StudentAdapter) -> float:
    parameters = adapter.networks["serving"].parameters()
    return math.hypot(*(p.grad.norm().item() for p in parameters if p.grad is not None))


def test_it_starts_as_the_teacher() -> None:
    score = torch.linspace(-5, 5, 11)
    assert torch.equal(adapter_with()(score), score)


@pytest.mark.parametrize("update", ["before", "after"])
def test_it_converges_to_a_constant_offset_which_helps_ne_and_not_auc(update: str) -> None:
    adapter = adapter_with(update=update)
    draw = torch.Generator().manual_seed(5)
    for step in range(1, 1501):
        truth = torch.randn(256, generator=draw) - 1.0
        one = batch()
        one.score = truth - OFFSET
        one.label = torch.bernoulli(torch.sigmoid(truth), generator=draw)
        one.weight, one.global_rows = torch.ones(256), 256
        one.staleness_ms = torch.zeros(256, dtype=torch.int64)
        adapter.begin(one, step)
        adapter.end(updated=True)
    truth = torch.randn(20_000, generator=draw) - 1.0
    label = torch.bernoulli(torch.sigmoid(truth), generator=draw).numpy()
    teacher, adapted = (truth - OFFSET).numpy(), adapter(truth - OFFSET).numpy()
    middle = np.abs(truth.numpy() + 1.0) < 1.5
    assert np.abs(adapted - truth.numpy())[middle].mean() < 0.1
    assert normalized_entropy(teacher, label) - normalized_entropy(adapted, label) > 0.05
    assert abs(auc(teacher, label) - auc(adapted, label)) < 1e-3


@pytest.mark.parametrize("kind", ["extra_head", "replace"])
def test_the_students_loss_reaches_neither_adapter_nor_teacher(kind: str) -> None:
    settings, adapter = settings_with(kind=kind), adapter_with(kind=kind)
    model = DistilledRanker(build_ranker(SCHEMA, MODEL, None, 3), settings, 3, 0.1)
    one = batch()
    one.score.requires_grad_()
    DistillationLoss(settings, adapter)(model(one.dense, one.sparse), one).sum().backward()
    assert one.score.grad is None
    assert all(parameter.grad is None for parameter in adapter.networks["serving"].parameters())
    head = model.adapter_head if kind == "extra_head" else model.distillation_head
    assert head is not None and all(parameter.grad is not None for parameter in head.parameters())
    assert not any(
        p.grad is None for name, p in model.ranker.named_parameters() if "output" in name
    )


def test_its_own_loss_does_not_reach_the_teacher() -> None:
    adapter, one = adapter_with(), batch()
    one.score.requires_grad_()
    adapter.begin(one, 1)
    assert one.score.grad is None


def test_replace_puts_its_prediction_in_the_scores_place_and_extra_head_adds_a_term() -> None:
    one = batch()
    replace, extra = (
        settings_with(kind="replace"),
        settings_with(kind="extra_head", loss_weight=2.0),
    )
    outputs = {name: torch.linspace(-1, 1, ROWS) for name in ("serving", "distillation")}

    def moved(score: Tensor, task: str) -> Tensor:
        return score + OFFSET

    def entropy(target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(
            outputs["distillation"], torch.sigmoid(target), reduction="none"
        )

    values = DistillationLoss(replace, moved).distillation(outputs, one)
    assert torch.allclose(values, entropy(one.score + OFFSET))
    both = DistillationLoss(extra, moved).distillation(
        {**outputs, "adapted": outputs["distillation"]}, one
    )
    assert torch.allclose(both, entropy(one.score) + 2.0 * entropy(one.score + OFFSET))


def test_before_changes_the_target_of_its_own_batch_and_after_does_not() -> None:
    for update, changed in (("before", True), ("after", False)):
        adapter, one = adapter_with(update=update), batch()
        adapter.begin(one, 1)
        assert torch.equal(adapter(one.score), one.score) is not changed
        adapter.end(updated=True)
        assert not torch.equal(adapter(one.score), one.score)


@pytest.mark.parametrize("update", ["before", "after"])
def test_a_batch_that_is_left_out_is_undone(update: str) -> None:
    adapter = adapter_with(update=update)
    adapter.begin(batch(), 1)
    adapter.end(updated=True)
    before = weights(adapter)
    adapter.begin(batch(torch.full((ROWS,), 2.0)), 2)
    adapter.end(updated=False)
    assert same(before, weights(adapter))


def test_only_scored_rows_teach_it() -> None:
    first, second = adapter_with(), adapter_with()
    one = batch()
    one.score[::2] = math.nan
    other = copy.deepcopy(one)
    other.label[::2] = 1.0 - other.label[::2]
    first.begin(one, 1)
    second.begin(other, 1)
    assert same(weights(first), weights(second))


def test_a_gradient_that_is_not_finite_ends_the_run_or_is_left_out() -> None:
    one = batch()
    one.label[3] = math.inf
    with pytest.raises(NonFiniteGradientError, match=r"step 7: .*the student adapter"):
        adapter_with().begin(one, 7)
    lenient = adapter_with({"skip_non_finite_batches": True})
    before = weights(lenient)
    lenient.begin(one, 7)
    assert same(before, weights(lenient))


def test_its_gradient_is_clipped() -> None:
    changes = {"hidden_layers": [], "learning_rate": 1.0}
    free, clipped = adapter_with(**changes), adapter_with({"dense_clip_norm": 1e-9}, **changes)
    free.begin(batch(), 1)
    clipped.begin(batch(), 1)
    norms = [gradient_norm(a) for a in (free, clipped)]
    assert norms[0] > 1e-3
    assert norms[1] <= 1.01e-9
