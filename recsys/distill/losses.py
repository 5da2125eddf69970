"""The loss of a distilled student: the hard label, and the soft label from a teacher, an adapter or
a peer."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.data.loader import Batch
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.heads import ADAPTED, DISTILLATION, PEER, output_of
from recsys.models.ranker import SERVING
from recsys.training.label_loss import label_entropy, label_loss
from recsys.units import MS_PER_HOUR


class ScoreMap(Protocol):
    """Maps a teacher's logits [B] to present-day logits [B], without gradients."""

    def __call__(self, score: Tensor, task: str, /) -> Tensor:
        """The mapped logits of ``task``; SERVING is the main one."""
        ...


class DistillationLoss:
    """The loss [B] per example: BCE(serving, label) + w · BCE(distillation, min(α p, 1)).

    p is the probability from the teacher, ``adapter`` or the peer. An example without a usable
    score has no second term, one without a label no first term. An extra head for the adapter, a
    hard label for the distillation head and the peer's own loss add terms. A further task adds all
    these terms for its own label and score, times its weight in ``task_weights`` (default 1).
    """

    def __init__(
        self,
        settings: DistillationSettings,
        adapter: ScoreMap | None = None,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.settings = settings
        self._adapter = adapter
        self._weights = task_weights or {}

    def __call__(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss [B]."""
        loss = self.serving(outputs, batch) + self.distillation(outputs, batch)
        if PEER not in outputs:
            return loss
        of_peer = {
            task: outputs[output_of(PEER, task)] for task in (SERVING, *batch.further_labels)
        }
        return loss + label_loss(of_peer, batch, self._weights)

    def serving(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """The serving heads' own loss [B]."""
        return label_loss(outputs, batch, self._weights)

    def distillation(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """The other heads' weighted contributions to the loss [B]."""
        loss = self._of_one_task(outputs, batch, SERVING)
        for task in batch.further_labels:
            names = {head: output_of(head, task) for head in (DISTILLATION, ADAPTED, PEER)}
            own = {head: outputs[name] for head, name in names.items() if name in outputs}
            loss = loss + self._weights.get(task, 1.0) * self._of_one_task(
                own, batch.of_task(task), task
            )
        return loss

    def _of_one_task(self, outputs: dict[str, Tensor], batch: Batch, task: str) -> Tensor:
        """The distillation loss [B] of the main task of ``batch``, which is the student's
        ``task``."""
        settings = self.settings
        trust = self.trust(batch)
        target = self.target(outputs, batch, task)
        term = _entropy(outputs[DISTILLATION], target) * trust
        loss = settings.loss_weight * torch.where(trust > 0, term, 0.0)
        if ADAPTED in outputs:
            adapted = self._probability(batch, settings.adapter.label_scale, task)
            term = _entropy(outputs[ADAPTED], adapted) * trust
            loss = loss + settings.adapter.loss_weight * torch.where(trust > 0, term, 0.0)
        if settings.hard_label_weight > 0:
            loss = loss + settings.hard_label_weight * label_entropy(
                outputs[DISTILLATION], batch.label
            )
        return loss

    def target(self, outputs: dict[str, Tensor], batch: Batch, task: str = SERVING) -> Tensor:
        """The distillation head's targets: [B] probabilities, without gradients; arbitrary where
        trust is 0.

        ``outputs`` and ``batch`` have ``task`` as their main task.
        """
        scale = self.settings.label_scale
        if self.settings.has_peer:
            return (scale * torch.sigmoid(outputs[PEER].detach())).clamp(max=1.0)
        return self._probability(batch, scale, task if self.settings.target_is_adapted else None)

    def trust(self, batch: Batch) -> Tensor:
        """The weight [B] in [0, 1] of each example's soft label: 0 where it is missing or too
        old."""
        if self.settings.has_peer:
            return torch.ones_like(batch.label)
        usable = is_usable(batch, self.settings).float()
        half_life = self.settings.staleness_half_life_hours
        if half_life is None:
            return usable
        return usable * torch.exp2(-batch.staleness_ms / (half_life * MS_PER_HOUR)).float()

    def _probability(self, batch: Batch, scale: float, adapted: str | None) -> Tensor:
        """The scaled probability [B] from the scores, corrected by the adapter of task ``adapted``
        if given."""
        score = torch.where(is_usable(batch, self.settings), batch.score.detach(), 0.0)
        if adapted is not None:
            assert self._adapter is not None, "a mode with an adapter needs one"
            score = self._adapter(score, adapted)
        return (scale * torch.sigmoid(score)).clamp(max=1.0)


def is_usable(batch: Batch, settings: DistillationSettings) -> Tensor:
    """[B] bool: whether each example has a finite score that is not too old."""
    usable = torch.isfinite(batch.score)
    if settings.max_staleness_hours is None:
        return usable
    return usable & (batch.staleness_ms <= settings.max_staleness_hours * MS_PER_HOUR)


def _entropy(logit: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logit, target, reduction="none")
