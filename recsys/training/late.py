"""Numbers from a step that the host reads later, so that no step waits for the device."""

import math

import torch
from torch import Tensor


class Late:
    """``values`` [N] float32, being copied to the host from now on.

    :meth:`read` waits for the step that computed them, but not for later steps.
    """

    def __init__(self, values: Tensor) -> None:
        # Into pinned memory if it comes from a GPU
        self._values = values.detach().to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.numpy().tolist()


class StepLoss:
    """The loss of a step; ``float`` waits for it. NaN if all ranks skipped the batch."""

    def __init__(self, loss: Tensor | None) -> None:
        self._loss = None if loss is None else Late(loss.view(1))

    def __float__(self) -> float:
        return math.nan if self._loss is None else self._loss.read()[0]
