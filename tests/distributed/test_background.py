"""Asynchronous checkpoints: what the synchronous ones hold, while training goes on; their errors
are not lost."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from recsys.training import resume
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import TrainSettings
from tests.support.engines import make_engine, settings_for, train_steps
from tests.support.launches import run_cases

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
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Sharding, full checkpoint every
CASES = [("row_wise", 1), ("table_wise", 2), ("data_parallel", 2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of CASES writes, in <kind>/sync and <kind>/async."""
    folder = tmp_path_factory.mktemp("saved")
    for name, function in (("sync", train_and_save), ("async", train_and_save_asynchronously)):
        run_cases(
            function,
            {
                kind: (2, (settings_for(kind, 2), folder / kind / name, full))
                for kind, full in CASES
            },
        )
    return folder


@pytest.mark.parametrize("kind", [kind for kind, _ in CASES])
def test_same_bytes_as_synchronous_ones_though_training_goes_on(kind: str, saved: Path) -> None:
    assert (
        len([name for name in files(saved / kind / "sync") if name.endswith("manifest.json")])
        == STEPS
    )
    assert files(saved / kind / "async") == files(saved / kind / "sync")


def save_where_nothing_can_be_written(
    settings: TrainSettings, folder: Path, own_error: bool
) -> list[str]:
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


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, int], list[list[str]]]:
    """By whether training ends with an error of its own and by number of ranks: what is raised, by
    rank."""
    cases = {}
    for own_error, world_size in itertools.product((False, True), (1, 2)):
        folder = tmp_path_factory.mktemp("unwritable")
        (folder / "checkpoints").write_text("a file where a folder should be")
        cases[own_error, world_size] = (
            world_size,
            (settings_for("row_wise", world_size), folder, own_error),
        )
    return run_cases(save_where_nothing_can_be_written, cases)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("own_error", [False, True])
def test_a_failed_write_is_raised_at_the_next_save_and_at_the_end_on_every_rank(
    own_error: bool, world_size: int, raised: dict[tuple[bool, int], list[list[str]]]
) -> None:
    assert len(raised[own_error, world_size]) == world_size
    for at_save, at_end in raised[own_error, world_size]:
        assert "cannot write the checkpoint" in at_save
        assert "000000-000000003: cannot write the checkpoint" in at_end
        assert at_end.startswith("of the training") == own_error
