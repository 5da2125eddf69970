"""torch.distributed.checkpoint, byte for byte the same for the same state."""

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


class ReproducibleWriter(FileSystemWriter):
    """Writes no random id and no absolute path, so that DVC sees equal checkpoints as equal."""

    def storage_meta(self) -> None:
        """No storage metadata; loading does not need it."""


def save_checkpoint(state: dict[str, Any], directory: Path) -> None:
    """Write ``state`` from all ranks to ``directory``; collective."""
    save(state, storage_writer=ReproducibleWriter(directory))


def load_checkpoint(state: dict[str, Any], directory: Path) -> None:
    """Fill ``state`` in place with what :func:`save_checkpoint` wrote; collective."""
    load(state, checkpoint_id=str(directory))
