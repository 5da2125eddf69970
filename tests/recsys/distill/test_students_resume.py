"""A killed students run goes on at the student and window it was at, and ends with an undisturbed
run's bytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from recsys.distill import students
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.students import Run, train_runs, train_students
from recsys.distill.training_job import TrainingJob
from recsys.training import ranks
from recsys.training.engine import Engine
from recsys.training.settings import TrainSettings
from tests.support.agents import Agent, start_agent
from tests.support.files import contents
from tests.support.killing import BOUND_S, die_after, kill
from tests.support.toy_stream import STUDENTS, TRAIN

STEPS = 10  # of one student: its known labels, in batches of a window


def settings_with(every_batches: int | None, side_by_side: bool = True) -> StudentsSettings:
    changes = {"checkpoint_every_batches": every_batches, "side_by_side": side_by_side}
    return STUDENTS.model_copy(update={"seeds": [1, 2], **changes})


def run(
    windows: Path,
    scores: Path,
    train: TrainSettings,
    every_batches: int | None,
    folder: Path,
    side_by_side: bool = True,
) -> None:
    output = folder / "output"
    output.mkdir(parents=True, exist_ok=True)
    settings = settings_with(every_batches, side_by_side)
    train_students(
        TrainingJob(windows, settings, train, output, scores_dir=scores), folder / "resume"
    )


def run_and_die(
    windows: Path, scores: Path, every_batches: int | None, steps: int, folder: Path
) -> None:
    die_after(steps)
    run(windows, scores, TRAIN, every_batches, folder)


@pytest.fixture(scope="module")
def undisturbed(
    windows_dir: Path,
    scores_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train_students(
        TrainingJob(windows_dir, settings_with(None), TRAIN, folder, scores_dir=scores_dir)
    )
    return contents(folder)


# After how many steps, by how often a checkpoint is written
KILLS = {None: [3, 14, 13], 2: [4, 12, 16]}


def killed_and_run(
    windows: Path, scores: Path, every_batches: int | None, folder: Path
) -> tuple[list[dict[str, bytes]], int]:
    """The output after each of KILLS, and the steps of the run that is then left alone."""
    left = []
    for steps in KILLS[every_batches]:
        kill(run_and_die, windows, scores, every_batches, steps, folder)
        left.append(contents(folder / "output"))
    with mock.patch.object(
        Engine, "finish_step", autospec=True, side_effect=Engine.finish_step
    ) as taken:
        run(windows, scores, TRAIN, every_batches, folder)
    return left, taken.call_count


@pytest.fixture(scope="module")
def killed(
    windows_dir: Path,
    scores_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[int | None, tuple[Agent, Path]]]:
    """The runs of KILLS, side by side since each keeps one core busy, and their folders."""
    folders = {every: tmp_path_factory.mktemp("killed") for every in KILLS}
    agents = {
        every: start_agent(
            killed_and_run, (windows_dir, scores_dir, every, folder), folder / "answer"
        )
        for every, folder in folders.items()
    }
    yield {every: (agent, folders[every]) for every, agent in agents.items()}
    for agent in agents.values():
        agent.kill()


@pytest.mark.parametrize("every_batches", KILLS)
def test_killed_run_ends_with_the_same_bytes(
    every_batches: int | None,
    killed: dict[int | None, tuple[Agent, Path]],
    undisturbed: dict[str, bytes],
) -> None:
    agent, folder = killed[every_batches]
    left, steps = agent.outcome(BOUND_S)
    assert left == [{}] * len(KILLS[every_batches])
    assert 0 < steps < 3 * STEPS  # of the four students' steps: at least one was not trained again
    assert contents(folder / "output") == undisturbed


def train_runs_and_die_once(
    runs: list[Run], shown: bool, job: TrainingJob[StudentsSettings]
) -> Any:
    """:func:`train_runs`; the first time, rank 1, which shows no progress or is one of two, kills
    itself in a later student."""
    assert job.checkpoints is not None
    killed = job.checkpoints.folder / "killed.txt"
    if (ranks.rank() == 1 or not shown) and not killed.exists():
        killed.touch()
        die_after(15)
    return train_runs(runs, shown, job)


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [True, False])
def test_lost_rank_restarts_the_group_and_ends_with_the_same_bytes(
    side_by_side: bool,
    windows_dir: Path,
    scores_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = TRAIN.model_copy(update={"world_size": 2, "max_restarts": 1})
    run(windows_dir, scores_dir, train, None, tmp_path / "calm", side_by_side)
    monkeypatch.setattr(students, "train_runs", train_runs_and_die_once)
    run(windows_dir, scores_dir, train, None, tmp_path / "lost", side_by_side)
    assert list((tmp_path / "lost" / "resume").rglob("killed.txt"))
    assert contents(tmp_path / "lost" / "output") == contents(tmp_path / "calm" / "output")


@pytest.mark.slow
def test_ranks_side_by_side_write_the_bytes_of_one_rank(
    windows_dir: Path, scores_dir: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    train = TRAIN.model_copy(update={"world_size": 2})
    run(windows_dir, scores_dir, train, None, tmp_path)
    assert contents(tmp_path / "output") == undisturbed


def test_ended_student_is_not_trained_again_and_keeps_no_checkpoints(
    windows_dir: Path,
    scores_dir: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(windows_dir, scores_dir, TRAIN, None, tmp_path)
    assert not list((tmp_path / "resume").rglob("*.distcp"))
    monkeypatch.delattr(Engine, "finish_step")
    again = tmp_path / "again"
    again.mkdir()
    train_students(
        TrainingJob(windows_dir, settings_with(None), TRAIN, again, scores_dir=scores_dir),
        tmp_path / "resume",
    )
    assert contents(again) == undisturbed
