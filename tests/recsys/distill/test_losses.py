"""Which soft labels count, and how much."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.data.loader import Batch
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.losses import DistillationLoss
from recsys.units import MS_PER_HOUR
from tests.support.distilled import ROWS, batch

OUTPUTS = {"serving": torch.linspace(-2, 1, ROWS), "distillation": torch.linspace(1, -2, ROWS)}


def aged(hours: Tensor) -> Batch:
    one = batch()
    one.staleness_ms = (hours * MS_PER_HOUR).long()
    return one


def added(settings: DistillationSettings, one: Batch) -> Tensor:
    """What the loss has beside the serving term, [B]."""
    serving = binary_cross_entropy_with_logits(OUTPUTS["serving"], one.label, reduction="none")
    return DistillationLoss(settings)(OUTPUTS, one) - serving


def test_a_score_past_the_limit_counts_as_missing() -> None:
    one = aged(torch.arange(ROWS).float())
    values = added(DistillationSettings(max_staleness_hours=4), one)
    assert values[:5].gt(0).all()
    assert not values[5:].any()


def test_the_term_halves_every_half_life() -> None:
    one = aged(torch.arange(ROWS).float())
    fresh = added(DistillationSettings(), one)
    decayed = added(DistillationSettings(staleness_half_life_hours=2), one)
    assert torch.allclose(decayed, fresh * 0.5 ** (torch.arange(ROWS) / 2), atol=1e-6)


@pytest.mark.parametrize("mode", ["shared", "auxiliary"])
@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_missing_scores_degrade_to_the_hard_label(mode: str, missing: float) -> None:
    one = batch()
    one.score[::2] = missing
    settings = DistillationSettings(mode=mode, loss_weight=7.0, staleness_half_life_hours=1.0)
    values = added(settings, one)
    assert not values[::2].any()
    assert values[1::2].gt(0).all()


def test_auxiliary_tower_also_learns_the_hard_label_and_without_a_score_only_that() -> None:
    one = batch(torch.full((ROWS,), math.nan))
    values = added(DistillationSettings(hard_label_weight=0.5), one)
    expected = 0.5 * binary_cross_entropy_with_logits(
        OUTPUTS["distillation"], one.label, reduction="none"
    )
    assert torch.allclose(values, expected, atol=1e-6)


def test_the_peers_probability_is_scaled_and_clamped_as_a_teachers_is() -> None:
    settings = DistillationSettings(mode="co_distillation", label_scale=2.0)
    one, peer = batch(), torch.linspace(-3, 3, ROWS)
    outputs = OUTPUTS | {"peer": peer}
    soft = (2.0 * torch.sigmoid(peer)).clamp(max=1.0)
    assert torch.allclose(DistillationLoss(settings).target(outputs, one), soft)
    entropy = binary_cross_entropy_with_logits(OUTPUTS["distillation"], soft, reduction="none")
    found = DistillationLoss(settings).distillation(outputs, one)
    assert torch.allclose(found, settings.loss_weight * entropy, atol=1e-6)


@pytest.mark.parametrize("mode", ["shared", "affine", "auxiliary"])
def test_the_teacher_gets_no_gradient(mode: str) -> None:
    one = batch()
    one.score.requires_grad_()
    outputs = {name: value.clone().requires_grad_() for name, value in OUTPUTS.items()}
    DistillationLoss(DistillationSettings(mode=mode))(outputs, one).sum().backward()
    assert one.score.grad is None
    assert outputs["distillation"].grad is not None
