"""NaN and infinities: where a batch holds them, how a run ends on one, and how all ranks leave one
out."""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys.data.loader import Batch

SOURCES = (
    "the dense input",
    "the labels",
    "the outputs",
    "the loss function's result",
    "the embeddings",
)
ADVICE = "lower the learning rates, mend the data, or set skip_non_finite_batches: true"
DENSE_COLUMN = "dense column {}"


class NonFiniteError(RuntimeError):
    """A batch whose loss or gradient is NaN or infinite.

    Args:
        step: number of the optimiser step that would have followed, from 1.
        sources: what held a NaN or an infinity on this rank: some of SOURCES, or parameters.
        features: the columns of the dense input ("dense column 3") and the embeddings that did, if
            any.
        window: in which it was; None where the caller knows no windows.
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
        """The same error with its window, and with the names of the first columns of the dense
        input."""
        names = {DENSE_COLUMN.format(column): name for column, name in enumerate(dense)}
        return type(self)(
            self.step, self.sources, [names.get(name, name) for name in self.features], window
        )


class NonFiniteLossError(NonFiniteError):
    """The loss of a batch is NaN or infinite; nothing was updated."""


class NonFiniteGradientError(NonFiniteError):
    """A gradient is NaN or infinite while the loss is finite.

    ``sources`` are the embeddings, then nothing was updated, or parameters, then the tables were:
    their kernels update them within the backward pass, with a gradient that was finite.
    """

    what = "gradient"


class NonFiniteGuard:
    """Looks at one engine's losses and gradients; ``skip``: leave a batch out on all ranks instead
    of raising."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._step = 0
        self._pooled: list[KeyedTensor] = []
        self._embeddings_are_bad = False

    def begin(self, step: int) -> None:
        """Forget the step before ``step``."""
        self._step, self._pooled, self._embeddings_are_bad = step, [], False

    def watch(
        self,
        module: nn.Module,
        inputs: tuple[Any, ...],
        output: KeyedTensor | LazyAwaitable[KeyedTensor],
    ) -> None:
        """Forward hook of a sharded collection: see its pooled embeddings, and their gradient
        before its kernels do."""
        if isinstance(output, KeyedTensor):
            self._watch(output)
        else:
            output.callbacks.append(self._watch)

    def skips_loss(self, loss: float, batch: Batch, outputs: Mapping[str, Tensor]) -> bool:
        """Whether to leave ``batch`` out for its loss, the same on every rank.

        Raises:
            NonFiniteLossError: it may not be left out.
        """
        finite = math.isfinite(loss)
        if not self.skip:
            if not finite:
                sources = non_finite_sources(batch, outputs, self._pooled)
                raise NonFiniteLossError(self._step, sources, self._features(batch))
            return False
        sources = on_any_rank([] if finite else non_finite_sources(batch, outputs, self._pooled))
        return self._says(sources)

    def skips_gradients(self, parameters: Mapping[str, nn.Parameter], differ: bool = False) -> bool:
        """Whether to leave the batch out for its gradients, those of ``parameters`` averaged over
        ranks.

        ``differ``: some of them are of this rank's host alone, so the ranks have to agree.

        Raises:
            NonFiniteGradientError: it may not be left out.
        """
        if self._embeddings_are_bad:
            return self._says(["the gradient of the embeddings"])
        gradients = [
            parameter.grad for parameter in parameters.values() if parameter.grad is not None
        ]
        found: list[str] = []
        if gradients and not math.isfinite(_total(gradients)):  # or finite numbers whose sum is not
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

    def _check_gradient(
        self, features: list[str], widths: list[int], gradient: Tensor
    ) -> Tensor | None:
        """Gradient [B, columns of all features] of the pooled embeddings; zeros where the batch is
        left out."""
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
        columns = (~torch.isfinite(batch.dense)).any(dim=0).nonzero().flatten().tolist()
        pooled = [
            name for p in self._pooled for name in _held(p.keys(), p.length_per_key(), p.values())
        ]
        return [DENSE_COLUMN.format(column) for column in columns] + pooled

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
    """Which of SOURCES hold a NaN or an infinity, where the loss of ``batch`` [B] does."""
    held = [batch.dense], [batch.label], list(outputs.values()), [], [p.values() for p in pooled]
    found = [
        name
        for name, values in zip(SOURCES, held, strict=True)
        if not all(_finite(v) for v in values)
    ]
    return found or [SOURCES[3]]


def on_any_rank(sources: Sequence[str]) -> list[str]:
    """The union of ``sources`` over ranks, in one collective."""
    flags = torch.tensor([float(name in sources) for name in SOURCES])
    if distributed.get_world_size() > 1:
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return [name for name, flag in zip(SOURCES, flags.tolist(), strict=True) if flag]


def _held(features: list[str], widths: list[int], values: Tensor) -> list[str]:
    """The features whose columns of ``values`` [B, columns of all features] hold a NaN or an
    infinity."""
    parts = values.detach().split(widths, dim=1)
    return [name for name, part in zip(features, parts, strict=True) if not _finite(part)]


def _total(values: Sequence[Tensor]) -> float:
    """Sum of all numbers: not finite if one is not, and faster than any norm of them."""
    return torch.stack([value.sum() for value in values]).sum().item()


def _finite(value: Tensor) -> bool:
    """Whether all of ``value`` is finite; a finite sum, one pass without memory, tells it in nearly
    every step."""
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())
