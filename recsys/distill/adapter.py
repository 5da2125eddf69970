"""The student adapter (ExFM, section 3.4, Algorithm 1), which corrects the teacher's score to the
present."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from recsys.data.loader import Batch
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.losses import is_usable
from recsys.models.layers import perceptron
from recsys.models.ranker import SERVING
from recsys.sharding.communication import average_gradients
from recsys.training.label_loss import label_entropy
from recsys.training.late import Late
from recsys.training.non_finite import STEPS_BEHIND, NonFiniteGradientError
from recsys.training.settings import TrainSettings
from recsys.training.side_model import SideModel


class ScoreNetwork(nn.Module):
    """logit [B] -> logit [B]: the teacher's logit plus an MLP of it. It starts as the identity."""

    def __init__(self, hidden: list[int], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = perceptron(1, hidden)
            self.output = nn.Linear(hidden[-1] if hidden else 1, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, score: Tensor) -> Tensor:
        """The corrected logits."""
        return score + self.output(self.hidden(score.unsqueeze(-1))).squeeze(-1)


class StudentAdapter(SideModel):
    """A :class:`ScoreNetwork` per task, trained on the task's hard label where an example has the
    label and a score.

    Calling it with scores returns predictions without a gradient, so the student's loss does not
    reach it. It has its own Adam optimiser. Its gradient is the mean over the global batch, and
    each task's is clipped like the dense part's by its own norm, so no task's adapter depends on
    the others.

    Args:
        settings: size, learning rate and when it is updated.
        train: gradient precision between ranks, clipping, treatment of non-finite gradients,
            device.
        seed: seed of its weights.
        world_size: ranks that train it together.
        further_tasks: the student's tasks besides the main one.

    Attributes:
        networks: networks by task, with SERVING for the main one; all start the same.
    """

    def __init__(
        self,
        settings: DistillationSettings,
        train: TrainSettings,
        seed: int,
        world_size: int,
        further_tasks: Sequence[str] = (),
    ) -> None:
        self._settings, self._train, self._world_size = settings, train, world_size
        hidden, rate = settings.adapter.hidden_layers, settings.adapter.learning_rate
        tasks = (SERVING, *further_tasks)
        self.networks = {task: ScoreNetwork(hidden, seed).to(train.device) for task in tasks}
        self._parameters = [p for network in self.networks.values() for p in network.parameters()]
        self._optimizer = _filled(torch.optim.Adam(self._parameters, lr=rate))
        self._before: list[Tensor] = []
        self._batch: Batch | None = None
        self._step = 0
        self._unread: deque[tuple[int, Late]] = deque()  # steps and their largest gradients

    @torch.no_grad()
    def __call__(self, score: Tensor, task: str = SERVING) -> Tensor:
        """The adapted logits [B] for the teacher's logits [B] and ``task``, without a gradient."""
        return self.networks[task](score)

    def begin(self, batch: Batch, step: int) -> None:
        """Train on ``batch`` if the adapter is updated before the student.

        Raises:
            NonFiniteGradientError: its gradient is NaN or infinite, and batches may not be skipped.
        """
        self._batch, self._step = batch, step
        if self._settings.adapter.update == "before":
            self._before = [value.clone() for value in self._tensors()]
            self._learn(batch)

    def end(self, updated: bool) -> None:
        """Train on the batch if the adapter is updated after the student; undo an update if the
        student skipped the batch.

        Raises:
            NonFiniteGradientError: see :meth:`begin`.
        """
        assert self._batch is not None, "end without begin"
        if self._settings.adapter.update == "after":
            if updated:
                self._learn(self._batch)
        elif not updated:
            with torch.no_grad():
                for value, before in zip(self._tensors(), self._before, strict=True):
                    value.copy_(before)
        self._before, self._batch = [], None

    def settle(self) -> None:
        """Check the gradients of steps that were not checked yet.

        Raises:
            NonFiniteGradientError: see :meth:`begin`.
        """
        while self._unread:
            self._check(*self._unread.popleft())

    def state(self) -> dict[str, Any]:
        """Weights and optimiser state, not copied."""
        side = {}
        for task, network in self.networks.items():
            optimizer = {name: self._optimizer.state[p] for name, p in network.named_parameters()}
            side[task] = {"network": network.state_dict(), "optimizer": optimizer}
        return {"side": side}

    def _learn(self, batch: Batch) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for task, network in self.networks.items():
            self._loss(network, batch if task == SERVING else batch.of_task(task)).backward()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._world_size > 1:
            average_gradients(gradients, self._train.communication.gradients)
        largest = Late(get_total_norm(gradients, norm_type=math.inf).view(1))
        if self.is_late:
            self._unread.append((self._step, largest))
            if len(self._unread) > STEPS_BEHIND:
                self._check(*self._unread.popleft())
        elif self._train.skip_non_finite_batches:
            if not math.isfinite(largest.read()[0]):
                return
        else:
            self._check(self._step, largest)
        if self._train.dense_clip_norm is not None:
            for network in self.networks.values():
                clip_grad_norm_(network.parameters(), self._train.dense_clip_norm)
        self._optimizer.step()

    @staticmethod
    def _check(step: int, largest: Late) -> None:
        if not math.isfinite(largest.read()[0]):
            raise NonFiniteGradientError(step, ["the student adapter"])

    def _loss(self, network: ScoreNetwork, batch: Batch) -> Tensor:
        """This rank's share of the mean loss, a scalar; only rows with a usable score and a label
        count."""
        usable = is_usable(batch, self._settings)
        logit = network(torch.where(usable, batch.score.detach(), 0.0))  # [B]
        losses = label_entropy(logit, batch.label)
        weight = torch.where(usable, batch.weight, 0.0)
        return (weight * losses).sum() * (self._world_size / batch.global_rows)

    def _tensors(self) -> list[Tensor]:
        optimizer = [value for p in self._parameters for value in self._optimizer.state[p].values()]
        return [*self._parameters, *optimizer]


def _filled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """``optimizer`` with the state that it has before its first step, so that a checkpoint can be
    loaded into it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters:
        optimizer.state[parameter]["step"].zero_()
    optimizer.zero_grad(set_to_none=True)
    return optimizer
