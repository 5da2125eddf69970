"""NaN and infinities: finding them in a batch, ending a run because of one, and skipping a batch on
all ranks."""

import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys.data.loader import Batch
from recsys.sharding.communication import CommunicationOverflowError, Overflows
from recsys.training.late import Late

SOURCES = (
    "the dense input",
    "the labels",
    "the outputs",
    "the loss function's result",
    "the embeddings",
)
ADVICE = "lower the learning rates, correct the data, or set skip_non_finite_batches: true"
DENSE_COLUMN = "dense column {}"
STEPS_BEHIND = 2  # after which a late check is read: how far the host may run ahead of the device
TINY = 2.0**-40  # a sum of float32 numbers times this factor is finite if they are


class NonFiniteError(RuntimeError):
    """The loss or gradient of a batch is NaN or infinite.

    Args:
        step: number, from 1, of the optimiser step that would have followed.
        sources: where NaN or infinity was found on this rank: some of SOURCES, or parameters.
        features: the affected columns of the dense input ("dense column 3") and embeddings, if any.
        window: the window in which it happened; None if unknown.
    """

    what = "loss"

    def __init__(
        self,
        step: int,
        sources: Sequence[str],
        features: Sequence[str] = (),
        window: str | None = None,
    ) -> None:
        self.step, self.sources, self.features, self.window = (
            step,
            tuple(sources),
            tuple(features),
            window,
        )
        where = f"step {step}" if window is None else f"step {step}, window {window}"
        held = f"NaN or infinity in {', '.join(sources)}" + (
            f"; features: {', '.join(features)}" if features else ""
        )
        super().__init__(f"{where}: the {self.what} is not finite: {held}; {ADVICE}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.sources, self.features, self.window)

    def located(self, window: str, dense: Sequence[str]) -> Self:
        """The same error with its window, and with the names of the dense input's first columns."""
        names = {DENSE_COLUMN.format(column): name for column, name in enumerate(dense)}
        return type(self)(
            self.step, self.sources, [names.get(name, name) for name in self.features], window
        )


class NonFiniteLossError(NonFiniteError):
    """The loss of a batch is NaN or infinite; nothing was updated."""


class NonFiniteGradientError(NonFiniteError):
    """A gradient is NaN or infinite while the loss is finite.

    If ``sources`` are the embeddings, nothing was updated. If they are parameters, the tables were
    updated, with a finite gradient: their kernels do this during the backward pass.
    """

    what = "gradient"


@dataclass
class _Columns:
    """Column sums [columns of all features], times TINY, of a checked tensor [B, columns]."""

    features: list[str]
    widths: list[int]
    sums: Tensor

    @classmethod
    def of(cls, features: list[str], widths: list[int], values: Tensor) -> Self:
        values = values.detach()
        return cls(features, widths, values.new_full((len(values),), TINY) @ values)

    def held(self) -> list[str]:
        """The features that contain NaN or infinity."""
        return _held(self.features, self.widths, self.sums.unsqueeze(0))


@dataclass
class _Step:
    """What shows, once the device has finished step ``number``, whether it was fine, and if not,
    where it went wrong."""

    number: int
    loss: Tensor
    batch: Batch
    outputs: Mapping[str, Tensor]
    pooled: list[_Columns]
    gradients: list[_Columns] = field(default_factory=list)
    overflows: list[tuple[str, str, Tensor]] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    differ: bool = False  # between ranks
    extremes: Tensor | None = None  # [parameters, 2]: smallest and largest of each gradient
    verdict: Late | None = None

    def judge(self) -> None:
        """Start copying the few numbers that are finite if all is well."""
        marks = [self.loss, *(columns.sums.sum() for columns in self.gradients)]
        if self.overflows:
            fits = torch.stack([part for *_, part in self.overflows]).abs() <= 1.0  # false for NaN
            marks.append(torch.where(fits.all(), 0.0, math.nan))
        marks += [] if self.extremes is None else [(self.extremes * TINY).sum()]
        self.verdict = Late(torch.stack(marks))

    def error(self) -> RuntimeError | None:
        """The error, or None; waits for the device."""
        if not _finite(self.loss):
            sources = non_finite_sources(self.batch, self.outputs)
            embeddings = [name for columns in self.pooled for name in columns.held()]
            if embeddings:
                sources = [name for name in sources if name != SOURCES[3]] + [SOURCES[-1]]
            features = _dense_columns(self.batch) + embeddings
            return NonFiniteLossError(self.number, sources, features)
        held = [name for columns in self.gradients for name in columns.held()]
        if held:
            return NonFiniteGradientError(self.number, [SOURCES[-1]], held)
        for setting, precision, extremes in self.overflows:
            if not bool((extremes.abs() <= 1.0).all()):
                return CommunicationOverflowError(setting, precision)
        if self.extremes is not None and not _finite(self.extremes):
            bad = (~self.extremes.isfinite()).any(dim=1).tolist()
            found = [name for name, is_bad in zip(self.parameters, bad, strict=True) if is_bad]
            return NonFiniteGradientError(self.number, found)
        return None


class NonFiniteGuard:
    """Checks an engine's losses and gradients; ``skip``: skip a batch on all ranks instead of
    raising.

    Between :meth:`begin_late` and :meth:`end_late` no step waits for the device: checks stay there
    and are read STEPS_BEHIND steps later, or by :meth:`settle`. The step is taken meanwhile, so a
    bad one leaves bad weights, and :meth:`settle` must be called before weights are read. With
    ``skip`` nothing is late, because a bad batch must be known before its step.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.overflows = Overflows()
        self._step = 0
        self._pooled: list[KeyedTensor] = []
        self._embeddings_are_bad = False
        self._late: _Step | None = None
        self._unread: deque[_Step] = deque()

    def begin_late(self) -> None:
        """From the next step on, read checks late."""
        self.overflows.is_late = not self.skip

    def end_late(self) -> None:
        """From the next step on, read checks at once."""
        self.overflows.is_late = False

    def begin(self, step: int) -> None:
        """Forget the previous step and begin ``step``."""
        self._step, self._pooled, self._embeddings_are_bad = step, [], False
        self._late = None
        if not self.overflows.is_late:
            self.settle()

    def settle(self) -> None:
        """Read all late checks.

        Raises:
            NonFiniteError, CommunicationOverflowError: the first bad step.
        """
        while self._unread:
            self._read()

    def watch(
        self,
        module: nn.Module,
        inputs: tuple[Any, ...],
        output: KeyedTensor | LazyAwaitable[KeyedTensor],
    ) -> None:
        """Forward hook of a sharded collection: check its pooled embeddings, and their gradient
        before its kernels use it."""
        if isinstance(output, KeyedTensor):
            self._watch(output)
        else:
            output.callbacks.append(self._watch)

    def skips_loss(self, loss: Tensor, batch: Batch, outputs: Mapping[str, Tensor]) -> bool:
        """Whether to skip ``batch`` because of its loss, the same on every rank.

        Raises:
            NonFiniteLossError: it is bad and may not be skipped.
        """
        if self.overflows.is_late:
            pooled = [_Columns.of(p.keys(), p.length_per_key(), p.values()) for p in self._pooled]
            held = {name: value.detach() for name, value in outputs.items()}
            self._late = _Step(self._step, loss.detach(), batch, held, pooled)
            self._pooled = []
            return False
        finite = math.isfinite(loss.item())
        if not self.skip:
            if not finite:
                sources = non_finite_sources(batch, outputs, self._pooled)
                raise NonFiniteLossError(self._step, sources, self._features(batch))
            return False
        sources = on_any_rank([] if finite else non_finite_sources(batch, outputs, self._pooled))
        return self._says(sources)

    def skips_gradients(self, parameters: Mapping[str, nn.Parameter], differ: bool = False) -> bool:
        """Whether to skip the batch because of its gradients; those of ``parameters`` are averaged
        over ranks.

        ``differ``: some of them belong only to this rank's host, so the ranks have to agree.

        Raises:
            NonFiniteGradientError: it is bad and may not be skipped.
        """
        if self.overflows.is_late:
            self._note(parameters, differ)
            return False
        if self._embeddings_are_bad:
            return self._says(["the gradient of the embeddings"])
        gradients = [
            parameter.grad for parameter in parameters.values() if parameter.grad is not None
        ]
        found: list[str] = []
        # The sum may also be infinite where all numbers are finite
        if gradients and not math.isfinite(_total(gradients)):
            found = [
                name for name, p in parameters.items() if p.grad is not None and not _finite(p.grad)
            ]
        bad = bool(found)
        if self.skip and differ:
            bad = bool(on_any_rank([SOURCES[-1]] if found else []))
        if not bad:
            return False
        if not self.skip:
            raise NonFiniteGradientError(self._step, found)
        where = ", ".join(found) or "other hosts' towers"
        return self._says([f"the gradient of {where}, after the tables' update"])

    def _watch(self, pooled: KeyedTensor) -> KeyedTensor:
        values = pooled.values()
        if values.requires_grad:
            self._pooled.append(pooled)
            values.register_hook(
                partial(self._check_gradient, pooled.keys(), pooled.length_per_key())
            )
        return pooled

    def _note(self, parameters: Mapping[str, nn.Parameter], differ: bool) -> None:
        """Keep this step's check, and read the one of STEPS_BEHIND steps ago."""
        step = self._late
        assert step is not None, "skips_gradients without skips_loss"
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if gradients:
            step.parameters, step.differ = list(gradients), differ
            extremes = [end for value in gradients.values() for end in value.aminmax()]
            step.extremes = torch.stack(extremes).view(-1, 2)
        step.overflows = self.overflows.taken()
        step.judge()
        self._unread.append(step)
        self._late = None
        if len(self._unread) > STEPS_BEHIND:
            self._read()

    def _read(self) -> None:
        """Read the oldest check.

        A gradient averaged over all ranks is bad on all of them; they then agree on the error of
        the rank where it originated.
        """
        step = self._unread.popleft()
        assert step.verdict is not None
        if all(map(math.isfinite, step.verdict.read())):
            return
        error = step.error()
        if error is None:
            return
        self._unread.clear()
        if step.extremes is not None and not _finite(step.extremes) and not step.differ:
            error = min(_of_all_ranks(error), key=_rank_of_cause)
        raise error

    def _check_gradient(
        self, features: list[str], widths: list[int], gradient: Tensor
    ) -> Tensor | None:
        """Check the gradient [B, columns of all features] of the pooled embeddings; returns zeros
        if the batch is skipped."""
        if self._late is not None:
            self._late.gradients.append(_Columns.of(features, widths, gradient))
            return None
        bad = not _finite(gradient)
        if not self.skip:
            if bad:
                raise NonFiniteGradientError(
                    self._step, [SOURCES[-1]], _held(features, widths, gradient)
                )
            return None
        self._embeddings_are_bad = bool(on_any_rank([SOURCES[-1]] if bad else []))
        return torch.zeros_like(gradient) if self._embeddings_are_bad else None

    def _features(self, batch: Batch) -> list[str]:
        return _dense_columns(batch) + [
            name for p in self._pooled for name in _held(p.keys(), p.length_per_key(), p.values())
        ]

    def _says(self, sources: list[str]) -> bool:
        if sources and distributed.get_rank() == 0:
            found = f"NaN or infinity in {', '.join(sources)}"
            print(
                f"train: after step {self._step - 1}: {found}; batch skipped",
                file=sys.stderr,
                flush=True,
            )
        return bool(sources)


def non_finite_sources(
    batch: Batch, outputs: Mapping[str, Tensor], pooled: Sequence[KeyedTensor] = ()
) -> list[str]:
    """Which of SOURCES contain NaN or infinity, when the loss of ``batch`` [B] does."""
    held = [batch.dense], [batch.label], list(outputs.values()), [], [p.values() for p in pooled]
    found = [
        name
        for name, values in zip(SOURCES, held, strict=True)
        if not all(_finite(v) for v in values)
    ]
    return found or [SOURCES[3]]


def _dense_columns(batch: Batch) -> list[str]:
    """The columns of the dense input that contain NaN or infinity."""
    columns = (~torch.isfinite(batch.dense)).any(dim=0).nonzero().flatten().tolist()
    return [DENSE_COLUMN.format(column) for column in columns]


def _of_all_ranks(error: RuntimeError) -> list[RuntimeError]:
    """Every rank's ``error``; collective."""
    errors: list[Any] = [error] * distributed.get_world_size()
    if len(errors) > 1:
        distributed.all_gather_object(errors, error)
    return errors


def _rank_of_cause(error: RuntimeError) -> int:
    """A rank for errors; lower means closer to the cause. A bad loss makes gradients bad, and bad
    gradients of a rank's embeddings make averages over ranks bad."""
    if isinstance(error, NonFiniteGradientError):
        return 1 if error.sources == (SOURCES[-1],) else 3
    return 0 if isinstance(error, NonFiniteLossError) else 2


def on_any_rank(sources: Sequence[str]) -> list[str]:
    """The union of ``sources`` over ranks, in one collective."""
    flags = torch.tensor([float(name in sources) for name in SOURCES])
    if distributed.get_world_size() > 1:
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return [name for name, flag in zip(SOURCES, flags.tolist(), strict=True) if flag]


def _held(features: list[str], widths: list[int], values: Tensor) -> list[str]:
    """The features whose columns of ``values`` [B, columns of all features] contain NaN or
    infinity."""
    parts = values.detach().split(widths, dim=1)
    return [name for name, part in zip(features, parts, strict=True) if not _finite(part)]


def _total(values: Sequence[Tensor]) -> float:
    """The sum of all numbers: not finite if one is not, and faster than any norm."""
    return torch.stack([value.sum() for value in values]).sum().item()


def _finite(value: Tensor) -> bool:
    """Whether all of ``value`` is finite; usually a finite sum, one pass without extra memory, is
    enough to know."""
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())
