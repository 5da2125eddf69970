"""The auxiliary head of ExFM (2502.17494, section 3.3): the teacher never touches the served head."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.distill.settings import AuxiliaryHeadSettings
from recsys.models.ranker import SMALLEST_RATE, Ranker

RANKER_PREFIX = "ranker."


class DistilledRanker(nn.Module):
    """A ranker with a second head that learns the teacher's predictions.

    The serving head sees the hard label only, the distillation head the teacher only; they share the
    backbone. The gradient from the distillation head into the backbone is multiplied by
    ``gradient_scale``; its own parameters keep theirs.

    Args:
        ranker: initialised; the same one trains the plain arm.
        settings: layers of the distillation head and the scale.
        seed: of the distillation head's weights.
        base_rate: of the labels; the head starts at α times it, or its first steps, all one way,
            would shake the backbone and use up the tables' AdaGrad.
    """

    def __init__(self, ranker: Ranker, settings: AuxiliaryHeadSettings, seed: int, base_rate: float) -> None:
        super().__init__()
        self.ranker = ranker
        self.gradient_scale = settings.gradient_scale
        self.distillation_head = _seeded_head(ranker.representation_size, settings.head_layers, seed)
        start = min(max(settings.label_scale * base_rate, SMALLEST_RATE), 1 - SMALLEST_RATE)
        nn.init.constant_(self.distillation_head[-1].bias, math.log(start / (1 - start)))  # type: ignore[arg-type]

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Logits [B] of both heads: ``serving`` and ``distillation``; dense is [B, W]."""
        representation = self.ranker.represent(dense, sparse)  # [B, H]
        scaled = scale_gradient(representation, self.gradient_scale)  # [B, H]
        return {
            "serving": self.ranker.head(representation),  # [B]
            "distillation": self.distillation_head(scaled).squeeze(-1),  # [B]
        }


class DistillationLoss:
    """Loss [B] of each example: BCE(serving, label) + w · BCE(distillation, min(α p, 1)).

    p is the teacher's probability. An example without a score (NaN) has no second term.
    """

    def __init__(self, settings: AuxiliaryHeadSettings) -> None:
        self.loss_weight, self.label_scale = settings.loss_weight, settings.label_scale

    def __call__(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        serving = functional.binary_cross_entropy_with_logits(outputs["serving"], batch.label, reduction="none")
        scored = ~torch.isnan(batch.score)  # [B]
        teacher = torch.sigmoid(torch.where(scored, batch.score, 0.0))  # [B]
        target = (self.label_scale * teacher).clamp(max=1.0)  # [B]
        term = functional.binary_cross_entropy_with_logits(outputs["distillation"], target, reduction="none")
        return serving + self.loss_weight * torch.where(scored, term, 0.0)


def scale_gradient(value: Tensor, scale: float) -> Tensor:
    """``value`` unchanged; its gradient times ``scale``."""
    return _GradientScale.apply(value, scale)  # type: ignore[return-value]


class _GradientScale(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, scale: float) -> Tensor:
        context.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * context.scale, None


def _seeded_head(inputs: int, hidden: list[int], seed: int) -> nn.Sequential:
    """An MLP inputs -> hidden -> 1 with ReLU, drawn from ``seed`` alone."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for width_in, width_out in pairwise([inputs, *hidden]):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        layers.append(nn.Linear(([inputs, *hidden])[-1], 1))
    return nn.Sequential(*layers)
