"""The position of a long run, kept in checkpoints, so that a killed run resumes instead of starting
over."""

import base64
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from recsys.config import InputError
from recsys.files import PARTIAL_SUFFIX, locked
from recsys.training.background import BackgroundWriter
from recsys.training.checkpoints import (
    MANIFEST_FILE,
    DamagedCheckpointError,
    checksum,
    read_manifest,
    save_checkpoint,
)
from recsys.training.differential import (
    TouchedRows,
    describe_tables,
    load_state,
    take_rows,
    without_tables,
)
from recsys.training.engine import Engine
from recsys.training.settings import Quantisation

LOCK_FILE = "lock"
CHECKPOINTS_DIR = "checkpoints"
OUTPUT_DIR = "output"


@dataclass(frozen=True)
class Position:
    """How far a run through the windows has come.

    Attributes:
        window: index of the current window; all earlier ones are done.
        batches: batches of its labels that were trained on; 0 also if the window is not predicted
            yet.
        loss: this rank's sum of loss x rows over those batches.
        rows: examples in those batches, over all ranks.
        measured: metrics of the window's predictions, if batches is above 0.
        history: metrics of finished windows.
        progress_rows: rows counted by the progress bar.
        counts: other sums over this rank's batches, by name.
    """

    window: int = 0
    batches: int = 0
    loss: float = 0.0
    rows: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    progress_rows: int = 0
    counts: dict[str, float] = field(default_factory=dict)


@dataclass
class Checkpoints:
    """The last ``keep`` checkpoints of one run in ``folder``, and the full ones they need; every
    method is collective.

    ``run`` identifies what the run computes. Besides the one at each window's end, :meth:`due` asks
    for a checkpoint every ``every_batches`` batches of a window (None: never). With
    ``asynchronously``, and inside :meth:`writing`, a save stalls training only for a copy in
    memory. Every ``full_every``-th checkpoint is full; the others contain the table rows trained on
    since. ``quantisation`` applies to the table weights in all of them; with fp16 or int8 a
    restored run is not bitwise the same. ``continued`` means that more windows may come after the
    last one, so that the end of a run is no reason to remove checkpoints.
    """

    folder: Path
    run: str
    keep: int
    every_batches: int | None = None
    asynchronously: bool = False
    full_every: int = 1
    quantisation: Quantisation = "none"
    continued: bool = False
    _writer: BackgroundWriter | None = field(default=None, init=False)
    _touched: TouchedRows | None = field(default=None, init=False)
    _base: str | None = field(default=None, init=False)  # the last full checkpoint
    _since_base: int = field(default=0, init=False)  # differential ones since then

    def due(self, batches: int) -> bool:
        """Whether to save after the ``batches``-th batch of a window."""
        return self.every_batches is not None and batches % self.every_batches == 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Saves inside this block are asynchronous, if enabled; its end waits for the last one.

        Raises:
            OSError: it could not be written.
        """
        if not self.asynchronously:
            yield
            return
        self._writer = BackgroundWriter()
        try:
            with self._writer.closing():
                yield
        finally:
            self._writer = None

    def save(self, engine: Engine, position: Position) -> None:
        """Publish weights, optimiser state, random state and ``position``, then remove the oldest
        checkpoints beyond ``keep``.

        Raises:
            OSError: it cannot be written, or the previous one could not be written in the
                background.
        """
        if self._writer is not None:
            self._writer.wait()
        name = f"{position.window:06d}-{position.batches:09d}"
        facts = self._facts(engine, position)
        state, rows = engine.state(), None
        if self._touched is not None:
            state, rows, facts["rows"] = self._split(engine, state, self._touched, name)
        if self._writer is None:
            with engine.tables_in_order():
                self._publish(state, rows, name, facts, None)
            return
        copied, group = BlockingAsyncStager().stage(state), self._writer.group
        self._writer.start(lambda: self._publish(copied, rows, name, facts, group))

    def restore(self, engine: Engine) -> Position:
        """Load the newest complete checkpoint into ``engine``; returns its position, or the start
        if there is none.

        If one is damaged, a line on stderr names it and the previous one is used; the result of the
        run is the same.

        Raises:
            DamagedCheckpointError: there are checkpoints, but all are damaged.
            InputError: they belong to another run.
        """
        if engine.rank == 0:
            for partial in self.folder.glob(f"*{PARTIAL_SUFFIX}"):
                shutil.rmtree(partial)
        is_plain = self.full_every == 1 and self.quantisation == "none"
        self._touched = None if is_plain else TouchedRows(engine.module)
        self._base, self._since_base = None, 0
        damage: DamagedCheckpointError | None = None
        for path in self._published():
            try:
                return self._restore(engine, path)
            except DamagedCheckpointError as error:
                damage = error
                _say(engine, f"{error}; trying the previous one")
        if damage is not None:
            raise damage
        return Position()

    def _facts(self, engine: Engine, position: Position) -> dict[str, Any]:
        mine = {
            "loss": position.loss,
            "counts": position.counts,
            "random": base64.b64encode(_random_state()).decode(),
        }
        ranks: list[Any] = [None] * engine.world_size
        distributed.all_gather_object(ranks, mine)
        return {
            "run": self.run,
            "position": asdict(position),
            "ranks": ranks,
            "plan": engine.plan_summary(),
        }

    def _split(
        self, engine: Engine, state: dict[str, Any], touched: TouchedRows, name: str
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None, dict[str, Any] | None]:
        """The part of ``state`` for DCP, the part as table rows, and facts about the rows; None if
        DCP writes everything."""
        is_full = self._base is None or self._since_base + 1 >= self.full_every
        base = None if is_full else self._base
        rows = written = None
        if base is not None or self.quantisation != "none":
            tables = describe_tables(engine.module, engine.settings.table_optimizer)
            rows = take_rows(state, touched, is_full, self.quantisation)
            manifest = None if base is None else checksum(self.folder / base / MANIFEST_FILE)
            since = 0 if is_full else self._since_base + 1
            written = {
                "base": base,
                "base_manifest": manifest,
                "since_base": since,
                "tables": tables,
            }
            state = without_tables(state, tables)
        self._since_base += 1
        if is_full:
            self._base, self._since_base = name, 0
            touched.clear()
        return state, rows, written

    def _publish(
        self,
        state: dict[str, Any],
        rows: dict[str, Tensor] | None,
        name: str,
        facts: dict[str, Any],
        group: distributed.ProcessGroup | None,
    ) -> None:
        save_checkpoint(state, self.folder / name, facts, rows, group)
        if distributed.get_rank() == 0:
            published = self._published()
            kept = {path.name for path in published[: self.keep]}
            kept |= {
                base
                for path in published[: self.keep]
                for base in [_base_of(path)]
                if base is not None
            }
            for old in published:
                if old.name not in kept:
                    shutil.rmtree(old)

    def _restore(self, engine: Engine, path: Path) -> Position:
        if read_manifest(path)["facts"].get("run") != self.run:
            raise InputError(
                f"{path}: this checkpoint is from a run with other data or settings; remove "
                f"{self.folder}"
            )
        state = engine.state()
        tables = describe_tables(engine.module, engine.settings.table_optimizer)
        with engine.tables_in_order():
            facts = load_state(state, tables, self._touched, path)
        engine.adopt(state)
        rows = facts.get("rows") or {"base": None, "since_base": 0}
        self._base, self._since_base = rows["base"] or path.name, rows["since_base"]
        position, ranks = Position(**facts["position"]), facts["ranks"]
        _say(
            engine,
            f"resumes at window {position.window + 1}, batch {position.batches + 1}, from {path}",
        )
        if len(ranks) != engine.world_size:
            counts = {
                name: sum(rank["counts"][name] for rank in ranks) / len(ranks)
                for name in position.counts
            }
            return replace(
                position, loss=sum(rank["loss"] for rank in ranks) / len(ranks), counts=counts
            )
        mine = ranks[engine.rank]
        random = bytearray(base64.b64decode(mine["random"]))
        torch.set_rng_state(torch.frombuffer(random, dtype=torch.uint8))
        return replace(position, loss=mine["loss"], counts=mine["counts"])

    def _published(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        found = [path for path in self.folder.glob("*-*") if not path.name.endswith(PARTIAL_SUFFIX)]
        return sorted(found, reverse=True)


def _base_of(path: Path) -> str | None:
    """The full checkpoint that a differential one needs; None for a full or damaged one."""
    try:
        return (read_manifest(path)["facts"].get("rows") or {}).get("base")
    except DamagedCheckpointError:
        return None


@contextmanager
def work_folder(resume_dir: Path, run: str, shared: bool = False) -> Iterator[Path]:
    """The folder in ``resume_dir`` where ``run`` keeps what it needs to resume after a kill;
    folders of other runs are removed.

    ``shared``: one process per node uses it.

    Raises:
        BusyError: another process is using it.
    """
    resume_dir.mkdir(parents=True, exist_ok=True)
    with locked(resume_dir / LOCK_FILE, "using this folder", shared):
        for path in resume_dir.iterdir():
            if path.is_dir() and path.name != run:
                shutil.rmtree(path, ignore_errors=shared)  # another node may be removing it
        folder = resume_dir / run
        (folder / OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        (folder / CHECKPOINTS_DIR).mkdir(exist_ok=True)
        yield folder


def _random_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _say(engine: Engine, text: str) -> None:
    if engine.rank == 0:
        print(f"checkpoints: {text}", file=sys.stderr, flush=True)
