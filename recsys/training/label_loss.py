"""What hard labels cost: binary cross-entropy of each task, nothing where an example has no
label."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.data.loader import Batch
from recsys.models.ranker import SERVING


def label_loss(outputs: dict[str, Tensor], batch: Batch, weights: Mapping[str, float]) -> Tensor:
    """The main task's loss and, times their ``weights``, the further tasks', an example: [B].

    A task without a weight has 1, as the main task has.
    """
    loss = label_entropy(outputs[SERVING], batch.label)
    for task, label in batch.further_labels.items():
        loss = loss + weights.get(task, 1.0) * label_entropy(outputs[task], label)
    return loss


def label_entropy(logit: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy [B] of one task; 0, without a gradient, where ``label`` [B] is NaN:
    there is none."""
    known = ~torch.isnan(label)
    losses = binary_cross_entropy_with_logits(
        logit, torch.where(known, label, 0.0), reduction="none"
    )
    return torch.where(known, losses, 0.0)
