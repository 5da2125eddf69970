"""Asynchronous checkpoints: what the synchronous ones hold, while training goes on; their errors are not lost."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from recsys.training import resume
from recsys.training.launch import run_on_ranks
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import TrainSettings
from tests.distributed.test_checkpoints import make_engine, settings_for, train_steps

STEPS = 4


@contextmanager
def writes_held() -> Iterator[threading.Semaphore]:
    """Each write begins only when the semaphore is released for it."""
    write, begin = resume.save_checkpoint, threading.Semaphore(0)

    def held(*arguments: Any) -> None:
        begin.acquire()
        write(*arguments)

    resume.save_checkpoint = held
    try:
        yield begin
    finally:
        resume.save_checkpoint = write


def train_and_save(settings: TrainSettings, folder: Path, full_every: int) -> None:
    """A checkpoint after each of STEPS steps."""
    folder.mkdir(exist_ok=True, parents=True)
    engine = make_engine(settings)
    checkpoints = Checkpoints(folder, "run", STEPS, full_every=full_every)
    checkpoints.restore(engine)
    for step in range(STEPS):
        train_steps(engine, step, step + 1)
        checkpoints.save(engine, Position(batches=step + 1))


def train_and_save_asynchronously(settings: TrainSettings, folder: Path, full_every: int) -> None:
    """The same; each write begins only after the next step has changed the model."""
    folder.mkdir(exist_ok=True, parents=True)
    engine = make_engine(settings)
    checkpoints = Checkpoints(folder, "run", STEPS, asynchronously=True, full_every=full_every)
    with writes_held() as begin, checkpoints.writing():
        checkpoints.restore(engine)
        for step in range(STEPS):
            train_steps(engine, step, step + 1)
            if step > 0:
                begin.release()
            checkpoints.save(engine, Position(batches=step + 1))
            assert not (folder / f"000000-{step + 1:09d}").exists()
        train_steps(engine, STEPS, STEPS + 1)
        begin.release()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("kind", "full_every"), [("row_wise", 1), ("table_wise", 2), ("data_parallel", 2)])
def test_same_bytes_as_synchronous_ones_though_training_goes_on(kind: str, full_every: int, tmp_path: Path) -> None:
    settings = settings_for(kind, 2)
    run_on_ranks(train_and_save, (settings, tmp_path / "sync", full_every), 2, 1)
    run_on_ranks(train_and_save_asynchronously, (settings, tmp_path / "async", full_every), 2, 1)
    assert len([name for name in files(tmp_path / "sync") if name.endswith("manifest.json")]) == STEPS
    assert files(tmp_path / "async") == files(tmp_path / "sync")


def save_where_nothing_can_be_written(settings: TrainSettings, folder: Path, own_error: bool) -> list[str]:
    """What is raised at the next save, and at the end, on this rank."""
    engine, raised = make_engine(settings), []
    checkpoints = Checkpoints(folder / "checkpoints", "run", 1, asynchronously=True)
    try:
        with checkpoints.writing():
            checkpoints.restore(engine)
            checkpoints.save(engine, Position(batches=1))
            try:
                checkpoints.save(engine, Position(batches=2))
            except OSError as error:
                raised.append(str(error))
            checkpoints.save(engine, Position(batches=3))
            train_steps(engine, 0, 1)  # goes on meanwhile
            if own_error:
                raise ValueError("of the training")
    except OSError as error:
        raised.append(str(error))
    except ValueError as error:
        raised.append(f"{error} {error.__notes__}")
    distributed.barrier()
    return raised


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("own_error", [False, True])
def test_a_failed_write_is_raised_at_the_next_save_and_at_the_end_on_every_rank(
    own_error: bool, world_size: int, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    arguments = settings_for("row_wise", world_size), tmp_path, own_error
    for raised in run_on_ranks(save_where_nothing_can_be_written, arguments, world_size, 1):
        at_save, at_end = raised
        assert "cannot write the checkpoint" in at_save
        assert "000000-000000003: cannot write the checkpoint" in at_end
        assert at_end.startswith("of the training") == own_error
