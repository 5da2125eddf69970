"""The teacher reaches the backbone, scaled, and never the serving head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings
from recsys.distill.heads import DistilledRanker, scale_gradient
from recsys.distill.losses import DistillationLoss
from recsys.models.factory import build_ranker
from tests.support.distilled import MODEL, ROWS, SCHEMA, batch


def distilled(**changes: Any) -> tuple[DistilledRanker, DistillationLoss]:
    settings = DistillationSettings(head_layers=[5], **changes)
    model = DistilledRanker(
        build_ranker(SCHEMA, MODEL, None, seed=3), settings, seed=3, base_rate=0.1
    )
    return model, DistillationLoss(settings)


def gradients(
    model: DistilledRanker, loss: DistillationLoss, one: Batch, without_label: bool
) -> dict[str, Tensor]:
    """Gradient of the sum of losses by parameter; ``without_label`` keeps the distillation term
    only."""
    model.zero_grad()
    outputs = model(one.dense, one.sparse)
    if without_label:
        outputs["serving"] = outputs["serving"].detach()
    loss(outputs, one).sum().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def test_distillation_never_touches_the_serving_head() -> None:
    model, loss = distilled(loss_weight=10.0, gradient_scale=20.0, label_scale=5.0)
    found = gradients(model, loss, batch(), without_label=True)
    assert all(not found[name].any() for name in found if name.startswith("ranker.output"))
    assert any(found[name].any() for name in found if name.startswith("ranker.over_arch"))
    assert any(found[name].any() for name in found if "embedding_bags" in name)


def test_serving_head_learns_from_the_label_alone() -> None:
    model, loss = distilled(loss_weight=10.0)
    one, other = batch(), batch(torch.full((ROWS,), 3.0))
    first, second = (gradients(model, loss, b, without_label=False) for b in (one, other))
    assert torch.equal(first["ranker.output.weight"], second["ranker.output.weight"])
    assert not torch.equal(first["ranker.over_arch.0.weight"], second["ranker.over_arch.0.weight"])


def test_backbone_gradient_is_linear_in_beta_and_the_head_keeps_its_own() -> None:
    found = {}
    for beta in (0.0, 1.0, 3.0):
        model, loss = distilled(gradient_scale=beta)
        found[beta] = gradients(model, loss, batch(), without_label=True)
    for name in found[1.0]:
        if name.startswith("distillation_head"):
            assert torch.equal(found[3.0][name], found[1.0][name])
        else:
            assert torch.allclose(found[3.0][name], 3.0 * found[1.0][name], atol=1e-7)
            assert not found[0.0][name].any()


@pytest.mark.parametrize(
    "changes", [{"gradient_scale": 20.0}, {"label_scale": 5.0}, {"loss_weight": 10.0}]
)
def test_serving_gradient_is_invariant_to_beta_alpha_and_w(changes: dict[str, float]) -> None:
    """The gradient of the serving term in every parameter, and that of the whole loss in the
    serving head."""
    found, heads = [], []
    for settings in ({}, changes):
        model, loss = distilled(**settings)
        one = batch()
        weights = [p for name, p in model.named_parameters() if name.startswith("ranker.")]
        head = [p for name, p in model.named_parameters() if name.startswith("ranker.output.")]
        outputs = model(one.dense, one.sparse)
        term = torch.autograd.grad(loss.serving(outputs, one).sum(), weights, retain_graph=True)
        found.append(term)
        heads.append(torch.autograd.grad(loss(outputs, one).sum(), head))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*heads, strict=True))
    assert any(value.any() for value in found[0])


def serving_after_training(
    optimizer: Callable[..., torch.optim.Optimizer], w: float, beta: float
) -> Tensor:
    """Serving logits [B] after 30 steps in float64."""
    model, loss = distilled(loss_weight=w, gradient_scale=beta)
    model.double()
    steps = optimizer(model.parameters())
    one = batch()
    one.dense, one.label, one.score = one.dense.double(), one.label.double(), one.score.double()
    for _ in range(30):
        steps.zero_grad()
        loss(model(one.dense, one.sparse), one).mean().backward()
        steps.step()
    return model(one.dense, one.sparse)["serving"].detach()


def test_under_adam_only_the_product_of_w_and_beta_matters() -> None:
    adam = partial(torch.optim.Adam, lr=1e-2, eps=1e-14)
    first, *others = [serving_after_training(adam, w, 20.0 / w) for w in (1.0, 4.0, 20.0)]
    assert all(torch.allclose(first, other, atol=1e-6) for other in others)
    assert not torch.allclose(first, serving_after_training(adam, 1.0, 1.0), atol=1e-3)
    sgd = partial(torch.optim.SGD, lr=1e-2)
    assert not torch.allclose(
        serving_after_training(sgd, 1.0, 20.0), serving_after_training(sgd, 20.0, 1.0), atol=1e-3
    )


def served_calibration(mode: str, w: float, ratio: float) -> float:
    """Mean prediction over mean label of a model that sees one kind of example, trained to the
    end."""
    model, loss = distilled(mode=mode, loss_weight=w)
    rate = torch.tensor(0.25)
    one = batch(torch.logit(ratio * rate).expand(ROWS))
    one.label = (torch.arange(ROWS) % 4 == 0).float()
    one.dense = torch.zeros_like(one.dense)
    ids = torch.zeros(2 * ROWS, dtype=torch.int64)
    one.sparse = KeyedJaggedTensor(["user", "ad"], ids, lengths=torch.ones_like(ids))
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        adam.zero_grad()
        loss(model(one.dense, one.sparse), one).mean().backward()
        adam.step()
    return (torch.sigmoid(model(one.dense, one.sparse)["serving"]).mean() / rate).item()


@pytest.mark.slow
@pytest.mark.parametrize(("w", "ratio"), [(0.5, 2.0), (1.0, 1.86), (3.0, 2.0)])
def test_a_biased_teacher_moves_the_single_head_by_the_closed_form_the_auxiliary_head_not(
    w: float, ratio: float
) -> None:
    assert served_calibration("shared", w, ratio) == pytest.approx(
        (1 + w * ratio) / (1 + w), abs=2e-3
    )
    assert served_calibration("auxiliary", w, ratio) == pytest.approx(1.0, abs=2e-3)


def test_affine_map_takes_a_biased_teacher_up() -> None:
    """One head of which the teacher's bias is taken off by the map: between the control and the
    single head."""
    assert abs(served_calibration("affine", 1.0, 2.0) - 1.0) < 0.05


def test_shared_and_affine_add_no_head_and_the_adapter_one_more() -> None:
    added = {
        mode: [
            name
            for name, _ in distilled(mode=mode)[0].named_parameters()
            if not name.startswith("ranker.")
        ]
        for mode in ("shared", "affine", "auxiliary", "auxiliary_adapter")
    }
    assert added["shared"] == []
    assert added["affine"] == ["affine.weight", "affine.bias"]
    assert len(added["auxiliary"]) == 4
    assert len(added["auxiliary_adapter"]) == 8
    replaced, _ = distilled(mode="auxiliary_adapter", adapter=AdapterSettings(kind="replace"))
    assert [
        name for name, _ in replaced.named_parameters() if name.startswith("adapter_head")
    ] == []


def test_peer_is_a_target_and_learns_the_label_alone() -> None:
    settings = DistillationSettings(
        mode="co_distillation", head_layers=[5], loss_weight=2.0, peer_model=MODEL
    )
    peer = build_ranker(SCHEMA, MODEL, None, 4, "cpu", "peer_")
    model = DistilledRanker(
        build_ranker(SCHEMA, MODEL, None, 3), settings, seed=3, base_rate=0.1, peer=peer
    )
    one = batch(torch.full((ROWS,), float("nan")))
    DistillationLoss(settings)(model(one.dense, one.sparse), one).sum().backward()
    learnt = [p.grad.clone() for p in peer.parameters() if p.grad is not None]
    peer.zero_grad()
    label_loss = torch.nn.functional.binary_cross_entropy_with_logits
    label_loss(peer(one.dense, one.sparse)["serving"], one.label, reduction="sum").backward()
    alone = [p.grad for p in peer.parameters() if p.grad is not None]
    assert len(alone) > 0 and all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(learnt, alone, strict=True)
    )
    assert model.distillation_head is not None and model.distillation_head[0].weight.grad.any()  # type: ignore[union-attr]


def test_missing_score_leaves_the_label_loss() -> None:
    _, loss = distilled(loss_weight=10.0)
    model, _ = distilled()
    score = torch.randn(ROWS)
    score[::2] = float("nan")
    one = batch(score)
    outputs = model(one.dense, one.sparse)
    label_loss = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs["serving"], one.label, reduction="none"
    )
    values = loss(outputs, one)
    assert torch.equal(values[::2], label_loss[::2])
    assert (values[1::2] > label_loss[1::2]).all()
    unscored = gradients(model, loss, batch(torch.full((ROWS,), float("nan"))), without_label=True)
    assert all(not value.any() for value in unscored.values())


def test_label_scale_multiplies_the_probability_and_clips_at_one() -> None:
    settings = DistillationSettings(loss_weight=1.0, gradient_scale=1.0, label_scale=4.0)
    one = batch(torch.logit(torch.tensor([0.1, 0.9])))
    one.label = torch.zeros(2)
    outputs = {"serving": torch.zeros(2), "distillation": torch.tensor([0.5, 0.5])}
    term = DistillationLoss(settings)(outputs, one) - torch.log(torch.tensor(2.0))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs["distillation"], torch.tensor([0.4, 1.0]), reduction="none"
    )
    assert torch.allclose(term, expected, atol=1e-6)


def test_both_arms_start_from_the_same_ranker() -> None:
    model, _ = distilled()
    plain = build_ranker(SCHEMA, MODEL, None, seed=3)
    one = batch()
    assert torch.equal(
        model(one.dense, one.sparse)["serving"], plain(one.dense, one.sparse)["serving"]
    )


def test_distillation_head_starts_at_the_scaled_base_rate() -> None:
    model, _ = distilled(label_scale=3.0)
    assert model.distillation_head is not None
    bias = model.distillation_head[-1].bias
    assert isinstance(bias, Tensor)
    assert torch.sigmoid(bias).item() == pytest.approx(0.3)


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_scale_gradient_is_the_identity_forward(scale: float) -> None:
    value = torch.randn(4, requires_grad=True)
    scaled = scale_gradient(value, scale)
    assert torch.equal(scaled, value)
    scaled.sum().backward()
    assert value.grad is not None and torch.equal(value.grad, torch.full((4,), scale))
