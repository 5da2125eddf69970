"""Where a long run stands, kept in checkpoints, so that a killed run goes on instead of starting over."""

import base64
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from recsys.config import InputError
from recsys.training.checkpoints import PARTIAL_SUFFIX, DamagedCheckpointError, read_manifest
from recsys.training.engine import Engine

LOCK_FILE = "lock"
CHECKPOINTS_DIR = "checkpoints"
OUTPUT_DIR = "output"


@dataclass(frozen=True)
class Position:
    """What a run through the windows has done.

    Attributes:
        window: index of the window under way; all before it are done.
        batches: batches of its labels trained on; 0 also where it is not predicted yet.
        loss: this rank's sum of loss x rows over those batches.
        rows: their examples, over all ranks.
        measured: metrics of the window's predictions, if batches is above 0.
        history: metrics of the windows done.
        progress_rows: rows that a progress bar has counted.
    """

    window: int = 0
    batches: int = 0
    loss: float = 0.0
    rows: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    progress_rows: int = 0


@dataclass(frozen=True)
class Checkpoints:
    """The last ``keep`` checkpoints of one run, in ``folder``; collective in every method.

    ``run`` identifies what the run computes. Besides each window's end, :meth:`due` asks for one
    every ``every_batches`` batches of a window (None: never).
    """

    folder: Path
    run: str
    keep: int
    every_batches: int | None = None

    def due(self, batches: int) -> bool:
        """Whether to save after the ``batches``-th batch of a window."""
        return self.every_batches is not None and batches % self.every_batches == 0

    def save(self, engine: Engine, position: Position) -> None:
        """Publish weights, optimiser state, random state and ``position``; then remove the oldest beyond ``keep``."""
        mine = {"loss": position.loss, "random": base64.b64encode(_random_state()).decode()}
        ranks: list[Any] = [None] * engine.world_size
        distributed.all_gather_object(ranks, mine)
        facts = {"run": self.run, "position": asdict(position), "ranks": ranks}
        engine.save(self.folder / f"{position.window:06d}-{position.batches:09d}", facts)
        if engine.rank == 0:
            for old in self._published()[self.keep :]:
                shutil.rmtree(old)

    def restore(self, engine: Engine) -> Position:
        """Load the newest whole checkpoint into ``engine``; its position, that of the start if there is none.

        A damaged one is named on stderr and the one before it is taken: the run ends the same.

        Raises:
            DamagedCheckpointError: there are checkpoints and all are damaged.
            InputError: they are of another run.
        """
        damage: DamagedCheckpointError | None = None
        for path in self._published():
            try:
                return self._restore(engine, path)
            except DamagedCheckpointError as error:
                damage = error
                _say(engine, f"{error}; trying the one before it")
        if damage is not None:
            raise damage
        return Position()

    def _restore(self, engine: Engine, path: Path) -> Position:
        if read_manifest(path)["facts"].get("run") != self.run:
            raise InputError(f"{path}: this checkpoint is of a run with other data or settings; remove {self.folder}")
        facts = engine.load(path)
        position, ranks = Position(**facts["position"]), facts["ranks"]
        _say(engine, f"goes on at window {position.window + 1}, batch {position.batches + 1}, from {path}")
        if len(ranks) != engine.world_size:
            return replace(position, loss=sum(rank["loss"] for rank in ranks) / len(ranks))
        mine = ranks[engine.rank]
        state = bytearray(base64.b64decode(mine["random"]))
        torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))
        return replace(position, loss=mine["loss"])

    def _published(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        found = [path for path in self.folder.glob("*-*") if not path.name.endswith(PARTIAL_SUFFIX)]
        return sorted(found, reverse=True)


@contextmanager
def work_folder(resume_dir: Path, run: str, shared: bool = False) -> Iterator[Path]:
    """The folder in ``resume_dir`` where ``run`` keeps what a killed process needs to go on; others' are removed.

    ``shared``: a process of each node uses it.

    Raises:
        InputError: another process is using it.
    """
    resume_dir.mkdir(parents=True, exist_ok=True)
    with (resume_dir / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{resume_dir}: another run is using this folder; wait for its end") from error
        for path in resume_dir.iterdir():
            if path.is_dir() and path.name != run:
                shutil.rmtree(path, ignore_errors=shared)  # another node may be removing it
        folder = resume_dir / run
        (folder / OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        (folder / CHECKPOINTS_DIR).mkdir(exist_ok=True)
        yield folder


def fingerprint(*parts: Any) -> str:
    """A name for the run that these plain values decide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:16]


def folder_state(folder: Path) -> list[tuple[str, int, int]]:
    """(path, bytes, ns of the last change) of each file: what a cheap look can tell of its contents."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat()) for path in files]
    return [(path.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns) for path, s in stats]


def link_files(source: Path, target: Path) -> None:
    """Put ``source``'s files in ``target``, as hard links where the file system can."""
    shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _random_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _say(engine: Engine, text: str) -> None:
    if engine.rank == 0:
        print(f"checkpoints: {text}", file=sys.stderr, flush=True)
