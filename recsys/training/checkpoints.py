"""torch.distributed.checkpoint folders: published atomically, with checksums, and the same bytes
for the same state."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from recsys.config import InputError
from recsys.files import PARTIAL_SUFFIX, file_hash, flush_folder, write_durably
from recsys.training.checkpoint_memory import InPlacePlanner, MappedReader

MANIFEST_FILE = "manifest.json"
ROWS_SUFFIX = ".rows.safetensors"
MISSING = "missing"


class DamagedCheckpointError(InputError):
    """A checkpoint is incomplete, has changed since it was written, or belongs to another model."""


class ReproducibleWriter(FileSystemWriter):
    """Writes no random ids or absolute paths, so that equal checkpoints have equal bytes for
    DVC."""

    def storage_meta(self) -> None:
        """No storage metadata; loading does not need it."""


def save_checkpoint(
    state: dict[str, Any],
    directory: Path,
    facts: Mapping[str, Any] | None = None,
    rows: dict[str, Tensor] | None = None,
    group: distributed.ProcessGroup | None = None,
) -> None:
    """Write ``state`` from all ranks to a temporary folder, then rename it to ``directory``;
    collective.

    A manifest contains the SHA-256 of each file, the number of ranks, and ``facts`` (plain values).

    Args:
        rows: tensors that this rank writes to its own file, besides ``state``.
        group: process group for the collectives; None: the default one.

    Raises:
        OSError: it cannot be written; raised on every rank, wherever it happened.
    """
    partial = directory.with_name(directory.name + PARTIAL_SUFFIX)
    rank = distributed.get_rank(group)
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
    distributed.barrier(group)
    try:
        save(
            state,
            storage_writer=ReproducibleWriter(partial),
            planner=InPlacePlanner(),
            process_group=group,
        )
    except CheckpointException as error:
        raise OSError(f"{directory}: cannot write the checkpoint: {_reason(error)}") from error
    if rows is not None:
        _on_all_ranks(
            lambda: _write_rows(rows, partial / f"{rank:04d}{ROWS_SUFFIX}"), directory, group
        )
    files = _checksums(partial, sorted(path.name for path in partial.iterdir()), group)
    if MISSING in files.values():
        raise OSError(f"{directory}: cannot read back the checkpoint that was just written")

    def publish() -> None:
        if rank == 0:
            manifest = {
                "files": files,
                "world_size": distributed.get_world_size(group),
                "facts": dict(facts or {}),
            }
            write_durably(
                partial / MANIFEST_FILE, json.dumps(manifest, indent=1, sort_keys=True) + "\n"
            )
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
            flush_folder(directory.parent)

    _on_all_ranks(publish, directory, group)


def load_checkpoint(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Fill ``state`` in place from a checkpoint of :func:`save_checkpoint`; collective. Returns its
    facts.

    Raises:
        DamagedCheckpointError: a file is missing or has changed, or ``state`` belongs to another
            model.
    """
    manifest = read_manifest(directory)
    _check_files(directory, manifest["files"])
    try:
        load(state, storage_reader=MappedReader(directory))
    except CheckpointException as error:
        raise DamagedCheckpointError(
            f"{directory}: the checkpoint is not of this model and its settings: {_reason(error)}"
        ) from error
    return manifest["facts"]


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: files, world_size, facts.

    Raises:
        DamagedCheckpointError: it is missing or cannot be read.
    """
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        if not (isinstance(manifest["files"], dict) and isinstance(manifest["facts"], dict)):
            raise TypeError("files and facts must be objects")
    except OSError as error:
        raise DamagedCheckpointError(
            f"{path}: cannot be read, so {directory} is not a complete checkpoint"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(
            f"{path}: the checkpoint is damaged: {' '.join(str(error).split())}"
        ) from error
    return manifest


def _check_files(directory: Path, expected: Mapping[str, str]) -> None:
    found = _checksums(directory, sorted(expected), None)
    for name, checksum in expected.items():
        if found[name] == MISSING:
            raise DamagedCheckpointError(f"{directory / name}: missing; the checkpoint is damaged")
        if found[name] != checksum:
            raise DamagedCheckpointError(
                f"{directory / name}: its SHA-256 is not the one in {MANIFEST_FILE}; the "
                f"checkpoint is damaged"
            )


def _checksums(
    directory: Path, names: Iterable[str], group: distributed.ProcessGroup | None
) -> dict[str, str]:
    """SHA-256 of each file, by name, on every rank; the ranks share the work."""
    rank, world_size = distributed.get_rank(group), distributed.get_world_size(group)
    mine = {name: checksum(directory / name) for name in list(names)[rank::world_size]}
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, mine, group)
    return {name: checksum for part in parts for name, checksum in part.items()}


def _on_all_ranks(
    action: Callable[[], None], directory: Path, group: distributed.ProcessGroup | None
) -> None:
    """Run ``action`` on every rank; if it fails on one, all raise, so that none waits."""
    problem = None
    try:
        action()
    except OSError as error:
        problem = " ".join(str(error).split())
    problems: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(problems, problem, group)
    for found in problems:
        if found is not None:
            raise OSError(f"{directory}: cannot write the checkpoint: {found}")


def _write_rows(rows: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(rows, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """SHA-256 of a file; MISSING if it cannot be read."""
    try:
        return file_hash(path)
    except OSError:
        return MISSING


def _reason(error: CheckpointException) -> str:
    """The first rank's own error, in one line."""
    first, _ = next(iter(error.failures.values()))
    return " ".join(str(first).split())
