"""The loss for hard labels: binary cross-entropy per task, 0 where an example has no label."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.data.loader import Batch
from recsys.models.ranker import SERVING


def label_loss(outputs: dict[str, Tensor], batch: Batch, weights: Mapping[str, float]) -> Tensor:
    """The loss per example [B]: the main task's plus the further tasks' times their ``weights``.

    A task without a weight has weight 1, like the main task.
    """
    loss = label_entropy(outputs[SERVING], batch.label)
    for task, label in batch.further_labels.items():
        loss = loss + weights.get(task, 1.0) * label_entropy(outputs[task], label)
    return loss


def label_entropy(logit: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy [B] of one task; 0, without a gradient, where ``label`` [B] is NaN
    (missing)."""
    known = ~torch.isnan(label)
    losses = binary_cross_entropy_with_logits(
        logit, torch.where(known, label, 0.0), reduction="none"
    )
    return torch.where(known, losses, 0.0)
