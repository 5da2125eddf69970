"""A small model trained alongside an engine's, on the same batches, with its own optimiser."""

from typing import Any

from recsys.data.loader import Batch


class SideModel:
    """Base class; does nothing by default. Subclasses train a model that every rank holds whole.

    The engine calls :meth:`begin` before the forward pass of each batch and :meth:`end` after its
    optimisers, on every rank, so both may be collective. Checkpoints hold :meth:`state`.

    Attributes:
        is_late: set by the engine: steps must not wait for the device, and :meth:`settle` will be
            called.
    """

    is_late = False

    def begin(self, batch: Batch, step: int) -> None:
        """Called before the engine's optimiser step ``step`` (from 1) on ``batch``, which is on the
        engine's device."""

    def end(self, updated: bool) -> None:
        """Called after the step. If not ``updated``, the batch was skipped, and what begin did must
        be undone."""

    def settle(self) -> None:
        """Raise the error of a bad step since the last call that was not raised at once."""

    def state(self) -> dict[str, Any]:
        """Live references to all tensors, {"side": {...}}; empty if there are none."""
        return {}
