"""Teacher snapshots on disk: published atomically, and never used to look ahead."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.config import InputError
from recsys.data.schema import Schema, Window
from recsys.files import PARTIAL_SUFFIX
from recsys.training import ranks

SNAPSHOTS_DIR = "snapshots"
SNAPSHOT_FILE = "snapshot.json"
WEIGHTS_DIR = "weights"


class LookAheadError(InputError):
    """A window would be scored by a teacher trained on labels from its time or later."""


@dataclass(frozen=True)
class Snapshot:
    """A published teacher.

    Every label it was trained on was known before ``high_water_mark`` (ms). ``ne`` and ``metrics``
    are those of its last window, predicted before training on it; undefined values are None.
    ``held_back`` snapshots never score. ``weights_hash`` is the SHA-256 of all weights by name.
    """

    name: str
    window: str
    high_water_mark: int
    ne: float | None
    weights_hash: str
    held_back: bool
    metrics: dict[str, Any] = field(default_factory=dict)


def publish(snapshots_dir: Path, snapshot: Snapshot, save_weights: Callable[[Path], None]) -> None:
    """Write a snapshot under a temporary name, then rename it. Called by every rank.

    Args:
        save_weights: writes the weights into a folder; called by every rank.
    """
    partial = snapshots_dir / f"{snapshot.name}{PARTIAL_SUFFIX}"
    if ranks.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / WEIGHTS_DIR).mkdir(parents=True)
    ranks.barrier()
    save_weights(partial / WEIGHTS_DIR)
    ranks.barrier()
    if ranks.rank() == 0:
        (partial / SNAPSHOT_FILE).write_text(
            json.dumps(asdict(snapshot), indent=1, sort_keys=True) + "\n"
        )
        shutil.rmtree(snapshots_dir / snapshot.name, ignore_errors=True)
        partial.rename(snapshots_dir / snapshot.name)


def list_snapshots(snapshots_dir: Path) -> list[Snapshot]:
    """All published snapshots, oldest first.

    Raises:
        InputError: the folder does not exist, or a snapshot.json is damaged.
    """
    if not snapshots_dir.is_dir():
        raise InputError(
            f"{snapshots_dir}: no such folder; run the teacher stage first (python -m "
            f"flows.teacher)"
        )
    found = []
    for path in sorted(snapshots_dir.glob(f"*/{SNAPSHOT_FILE}")):
        if path.parent.name.endswith(PARTIAL_SUFFIX):
            continue
        try:
            found.append(Snapshot(**json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not a snapshot: {' '.join(str(error).split())}") from error
    return sorted(found, key=lambda snapshot: (snapshot.high_water_mark, snapshot.name))


def drop_weights(snapshots_dir: Path, keep: int) -> None:
    """Remove the weights of all snapshots except the newest ``keep`` that may score; each one's
    snapshot.json stays."""
    for left in snapshots_dir.glob(f"*/*{PARTIAL_SUFFIX}"):
        shutil.rmtree(left)
    snapshots = list_snapshots(snapshots_dir)
    kept = [one.name for one in snapshots if not one.held_back][-keep:]
    for name in (one.name for one in snapshots if one.name not in kept):
        weights = snapshots_dir / name / WEIGHTS_DIR
        if weights.is_dir():  # half-removed ones would look complete
            shutil.rmtree(weights.rename(weights.with_name(f"{WEIGHTS_DIR}{PARTIAL_SUFFIX}")))


def has_weights(snapshots_dir: Path, snapshot: Snapshot) -> bool:
    """Whether the snapshot still has its weights; see :func:`drop_weights`."""
    return (snapshots_dir / snapshot.name / WEIGHTS_DIR).is_dir()


def latest_before(snapshots: list[Snapshot], time_ms: int) -> Snapshot | None:
    """The newest snapshot that is not held back and whose high-water mark is at most ``time_ms``;
    None if there is none."""
    usable = [s for s in snapshots if not s.held_back and s.high_water_mark <= time_ms]
    return max(usable, key=lambda s: (s.high_water_mark, s.name), default=None)


def check_no_look_ahead(snapshot: Snapshot, window: Window, schema: Schema) -> None:
    """Check that ``snapshot`` may score ``window``.

    Raises:
        LookAheadError: its high-water mark is after the window's start, or before the end of the
            window on which it claims to be trained.
        InputError: it names a window that is not in the data.
    """
    learnt = next((w for w in schema.windows if w.name == snapshot.window), None)
    if learnt is None:
        raise InputError(
            f"snapshot {snapshot.name}: window {snapshot.window!r} is not in the data; train again"
        )
    if snapshot.high_water_mark < learnt.end_ms:
        raise LookAheadError(
            f"snapshot {snapshot.name}: high-water mark {snapshot.high_water_mark} is before the "
            f"end {learnt.end_ms} of window {learnt.name}, on which it was trained"
        )
    if snapshot.high_water_mark > window.start_ms:
        raise LookAheadError(
            f"window {window.name} starts at {window.start_ms}, before the high-water mark "
            f"{snapshot.high_water_mark} of snapshot {snapshot.name}"
        )


def hash_weights(state: dict[str, Tensor]) -> str:
    """SHA-256 of a state: names, shapes, dtypes and bytes, ordered by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
