"""A small model that trains beside an engine's, on the same batches, with its own optimiser."""

from typing import Any

from recsys.data.loader import Batch


class SideModel:
    """Base class; does nothing by default. Subclasses train a model that every rank holds whole.

    The engine calls :meth:`begin` before the forward pass of each batch and :meth:`end` after its
    optimisers, on every rank, so both may be collective. Checkpoints hold :meth:`state`.

    Attributes:
        is_late: set by the engine: no step is to wait for the device, and :meth:`settle` follows.
    """

    is_late = False

    def begin(self, batch: Batch, step: int) -> None:
        """``batch``, on the engine's device, is about to be the engine's optimiser step number
        ``step``, from 1."""

    def end(self, updated: bool) -> None:
        """The step was taken; not ``updated``: the batch was left out, and what begin did is to be
        undone."""

    def settle(self) -> None:
        """Raise what was wrong in a step since the last call, and was not raised at once."""

    def state(self) -> dict[str, Any]:
        """Live references to all tensors, {"side": {...}}; empty where there are none."""
        return {}
