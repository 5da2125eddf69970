"""A ranker with heads for the teacher's labels; none of them is served."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.modes import SoftHead
from recsys.models.layers import perceptron
from recsys.models.ranker import SERVING, log_odds

RANKER_PREFIX = "ranker."
PEER_TABLE_PREFIX = "peer_"
DISTILLATION, ADAPTED, PEER = "distillation", "adapted", "peer"


def output_of(head: str, task: str) -> str:
    """The name of the output of ``head`` (``distillation``, ``adapted``, ``peer``) for a task;
    SERVING is the main one."""
    return head if task == SERVING else f"{head}_{task}"


class SplitRanker(Protocol):
    """A ranker whose representation and head can be called separately."""

    representation_size: int
    further_tasks: list[str]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight by name."""
        ...

    def embed(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Ids of F features -> [B, F, N]."""
        ...

    def represent_embedded(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """[B, W], [B, F, N] -> [B, H]."""
        ...

    def represent(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """[B, W] and ids -> [B, H]."""
        ...

    def head(self, representation: Tensor) -> Tensor:
        """[B, H] -> logit [B]."""
        ...

    def first_order(self, representation: Tensor, task: int) -> Tensor | float:
        """[B, H] -> the first-order part of a task's logit [B], from its ids alone; 0 if there is
        none."""
        ...

    def heads(self, representation: Tensor) -> dict[str, Tensor]:
        """[B, H] -> logits [B] by name: ``serving``, and each further task under its own name."""
        ...


class DistilledRanker(nn.Module):
    """A ranker with the additions of its distillation mode; see :class:`DistillationSettings`.

    With a separate distillation head, the serving head learns only the hard label and the
    distillation head only the soft one (ExFM, section 3.3); they share the backbone. The gradient
    from the distillation heads into the backbone is multiplied by ``gradient_scale``; gradients of
    their own parameters are unchanged. Each of the ranker's tasks gets its own additions.

    Args:
        ranker: an initialised ranker; the same one trains the plain arm.
        settings: mode, head layers, and scales.
        seed: seed of the heads' weights.
        base_rate: mean label. A head starts at α times this rate; otherwise its first steps, all in
            one direction, would disturb the backbone and use up the tables' AdaGrad.
        further_base_rates: mean labels of the ranker's further tasks.
        peer: the larger ranker for co-distillation, with the same tasks.
    """

    def __init__(
        self,
        ranker: SplitRanker,
        settings: DistillationSettings,
        seed: int,
        base_rate: float,
        peer: SplitRanker | None = None,
        further_base_rates: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.ranker = ranker
        assert len(further_base_rates) == len(ranker.further_tasks), "a rate per further task"
        self.gradient_scale = settings.gradient_scale
        self.distillation_head = self.affine = self.adapter_head = None
        size, layers = ranker.representation_size, settings.head_layers
        self.further_heads, self.further_adapter_heads = nn.ModuleList(), nn.ModuleList()
        rates = [base_rate, *further_base_rates]
        if settings.has_own_head:
            self.distillation_head, *further = _seeded_heads(
                size, layers, seed, rates, settings.label_scale
            )
            self.further_heads.extend(further)
        elif settings.way.head is SoftHead.MAP:
            self.affine = _identity()
            self.further_heads.extend(_identity() for _ in further_base_rates)
        if settings.has_adapted_head:
            own_seed = seed + len(rates)  # different from the other heads'
            self.adapter_head, *further = _seeded_heads(
                size, layers, own_seed, rates, settings.adapter.label_scale
            )
            self.further_adapter_heads.extend(further)
        self.peer = peer

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Logits [B] by head: ``serving``, ``distillation``, ``adapted`` and, in training,
        ``peer``; dense is [B, W].

        Outputs of a further task contain its name: ``<task>``, ``distillation_<task>`` and so on.
        """
        outputs = self.heads(self.ranker.represent(dense, sparse))
        return outputs | self.of_peer(dense, sparse) if self.training else outputs

    def of_peer(self, dense: Tensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """The peer's logits [B]: ``peer``, ``peer_<task>``; empty without a peer."""
        if self.peer is None:
            return {}
        logits = self.peer.heads(self.peer.represent(dense, sparse))
        return {output_of(PEER, task): logit for task, logit in logits.items()}

    def heads(self, representation: Tensor) -> dict[str, Tensor]:
        """Logits [B] of the heads for a representation [B, H]."""
        scaled = scale_gradient(representation, self.gradient_scale)  # [B, H]
        outputs = self.ranker.heads(representation)  # each [B]
        if self.distillation_head is not None:
            outputs[DISTILLATION] = self._head(self.distillation_head, scaled, 0)
        elif self.affine is not None:
            outputs[DISTILLATION] = self.affine(outputs[SERVING].unsqueeze(-1)).squeeze(-1)
        else:
            outputs[DISTILLATION] = outputs[SERVING]
        if self.adapter_head is not None:
            outputs[ADAPTED] = self._head(self.adapter_head, scaled, 0)
        return outputs | self._further(outputs, scaled)

    def _further(self, outputs: dict[str, Tensor], scaled: Tensor) -> dict[str, Tensor]:
        """The outputs that learn the soft labels of the further tasks."""
        tasks = self.ranker.further_tasks
        if not self.further_heads:
            return {output_of(DISTILLATION, task): outputs[task] for task in tasks}
        found = {}
        for place, (task, head) in enumerate(zip(tasks, self.further_heads, strict=True), start=1):
            if self.affine is None:
                found[output_of(DISTILLATION, task)] = self._head(head, scaled, place)
            else:
                found[output_of(DISTILLATION, task)] = head(outputs[task].unsqueeze(-1)).squeeze(-1)
        # None without a separate head
        for place, head in enumerate(self.further_adapter_heads, start=1):
            found[output_of(ADAPTED, tasks[place - 1])] = self._head(head, scaled, place)
        return found

    def _head(self, head: nn.Module, representation: Tensor, task: int) -> Tensor:
        """[B, H + T] -> logit [B]: the head's output plus the task's first-order logit."""
        return head(representation).squeeze(-1) + self.ranker.first_order(representation, task)


def scale_gradient(value: Tensor, scale: float) -> Tensor:
    """``value`` unchanged, with its gradient multiplied by ``scale``."""
    return _GradientScale.apply(value, scale)  # type: ignore[return-value]


class _GradientScale(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, scale: float) -> Tensor:
        context.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * context.scale, None


def _seeded_heads(
    inputs: int, hidden: list[int], seed: int, rates: list[float], scale: float
) -> list[nn.Sequential]:
    """A head per base rate, initialised from ``seed`` and the seeds after it; each starts at
    ``scale`` times its rate."""
    heads = [_seeded_head(inputs, hidden, seed + number) for number in range(len(rates))]
    for head, rate in zip(heads, rates, strict=True):
        nn.init.constant_(head[-1].bias, log_odds(scale * rate))  # type: ignore[arg-type]
    return heads


def _seeded_head(inputs: int, hidden: list[int], seed: int) -> nn.Sequential:
    """An MLP inputs -> hidden -> 1 with ReLU, initialised from ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *perceptron(inputs, hidden), nn.Linear(hidden[-1] if hidden else inputs, 1)
        )


def _identity() -> nn.Linear:
    """Logit [B, 1] -> logit [B, 1], initialised as the identity."""
    layer = nn.Linear(1, 1)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
