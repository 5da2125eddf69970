"""A killed teacher run goes on where it was, and what it writes is what an undisturbed run
writes."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from recsys.config import InputError
from recsys.distill import teacher
from recsys.distill.teacher import last_good, train_teacher
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import TrainingJob
from recsys.training import checkpoints, ranks
from recsys.training.engine import Engine
from recsys.training.resume import work_folder
from recsys.training.settings import TrainSettings
from tests.support.agents import Agent, start_agent
from tests.support.files import contents
from tests.support.killing import BOUND_S, die_after, kill
from tests.support.toy_stream import TEACHER, TRAIN


def settings_with(every_batches: int | None, **changes: Any) -> TeacherSettings:
    return TEACHER.model_copy(
        update={"checkpoint_every_batches": every_batches, "snapshot_every_windows": 2, **changes}
    )


def die_in_write(writes: int) -> None:
    """Make this process kill itself when the ``writes``-th checkpoint is written but not yet
    published."""
    write, done = checkpoints.write_durably, iter(range(1, writes + 1))

    def counted(path: Path, text: str) -> None:
        write(path, text)
        if next(done) == writes:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.write_durably = counted


def run_and_die(
    windows: Path, every_batches: int | None, steps: int, folder: Path, **changes: Any
) -> None:
    die_after(steps)
    run(windows, TRAIN, every_batches, folder, **changes)


def run_and_die_in_write(
    windows: Path, every_batches: int, writes: int, folder: Path, **changes: Any
) -> None:
    die_in_write(writes)
    run(windows, TRAIN, every_batches, folder, **changes)


def run(
    windows: Path, train: TrainSettings, every_batches: int | None, folder: Path, **changes: Any
) -> None:
    output = folder / "output"
    output.mkdir(parents=True, exist_ok=True)
    train_teacher(
        TrainingJob(windows, settings_with(every_batches, **changes), train, output),
        folder / "resume",
    )


def train_rank_that_dies_once(job: TrainingJob[TeacherSettings], *arguments: Any) -> Any:
    """:func:`teacher._train_rank`; the first time, rank 1 kills itself after 7 steps."""
    assert job.checkpoints is not None
    killed = job.checkpoints.folder / "killed.txt"
    if ranks.rank() == 1 and not killed.exists():
        killed.touch()
        die_after(7)
    return teacher._train_rank(job, *arguments)


@pytest.fixture(scope="module")
def undisturbed(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train_teacher(TrainingJob(windows_dir, settings_with(None), TRAIN, folder))
    return contents(folder)


@dataclass(frozen=True)
class Killed:
    """A run that is killed at each of ``deaths`` (how, and after how many steps or writes), then
    left alone."""

    every_batches: int | None
    deaths: list[tuple[Callable[..., None], int]]
    changes: dict[str, Any] = field(default_factory=dict)


def steps(*counts: int) -> list[tuple[Callable[..., None], int]]:
    return [(run_and_die, count) for count in counts]


DIFFERENTIAL = [*steps(7), (run_and_die_in_write, 2), (run_and_die_in_write, 3), *steps(5)]
KILLED = {
    "at windows": Killed(None, steps(1, 7, 8)),
    "at batches": Killed(2, steps(4, 2, 5, 7)),
    "differential": Killed(
        1, DIFFERENTIAL, {"checkpoint_asynchronously": False, "full_checkpoint_every": 3}
    ),
    "asynchronous": Killed(
        1, DIFFERENTIAL, {"checkpoint_asynchronously": True, "full_checkpoint_every": 3}
    ),
}


def killed_and_run(windows: Path, case: Killed, folder: Path) -> tuple[list[dict[str, bytes]], str]:
    """The output after each death, and what the last run says."""
    left = []
    for die, count in case.deaths:
        kill(die, windows, case.every_batches, count, folder, **case.changes)
        left.append(contents(folder / "output"))
    with redirect_stderr(StringIO()) as said:
        run(windows, TRAIN, case.every_batches, folder, **case.changes)
    return left, said.getvalue()


@pytest.fixture(scope="module")
def killed(
    windows_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Agent, Path]]]:
    """The runs of KILLED, side by side since each keeps one core busy, and their folders."""
    folders = {name: tmp_path_factory.mktemp("killed") for name in KILLED}
    agents = {
        name: start_agent(killed_and_run, (windows_dir, KILLED[name], folder), folder / "answer")
        for name, folder in folders.items()
    }
    yield {name: (agent, folders[name]) for name, agent in agents.items()}
    for agent in agents.values():
        agent.kill()


@pytest.mark.parametrize("name", KILLED)
def test_run_killed_in_steps_or_writes_ends_with_the_same_bytes(
    name: str, killed: dict[str, tuple[Agent, Path]], undisturbed: dict[str, bytes]
) -> None:
    agent, folder = killed[name]
    left, said = agent.outcome(BOUND_S)
    assert left == [{}] * len(KILLED[name].deaths)
    assert "resumes at window" in said
    assert contents(folder / "output") == undisturbed


def test_lost_rank_restarts_the_group_and_ends_with_the_same_bytes(
    windows_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = TRAIN.model_copy(update={"world_size": 2, "max_restarts": 1})
    run(windows_dir, train, 2, tmp_path / "calm", checkpoint_asynchronously=True)
    monkeypatch.setattr(teacher, "_train_rank", train_rank_that_dies_once)
    run(windows_dir, train, 2, tmp_path / "lost", checkpoint_asynchronously=True)
    assert list((tmp_path / "lost" / "resume").rglob("killed.txt"))
    assert contents(tmp_path / "lost" / "output") == contents(tmp_path / "calm" / "output")


def test_ended_run_is_not_trained_again(
    windows_dir: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(windows_dir, TRAIN, None, tmp_path)
    monkeypatch.delattr(Engine, "finish_step")
    again = tmp_path / "again"
    again.mkdir()
    train_teacher(TrainingJob(windows_dir, settings_with(None), TRAIN, again), tmp_path / "resume")
    assert contents(again) == undisturbed


def test_other_settings_start_over(
    windows_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run(windows_dir, TRAIN, None, tmp_path)
    run(windows_dir, TRAIN.model_copy(update={"table_learning_rate": 0.01}), None, tmp_path)
    assert "goes on" not in capfd.readouterr().err
    assert len([path for path in (tmp_path / "resume").iterdir() if path.is_dir()]) == 1


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path, "a"),
        pytest.raises(InputError, match="another run is using"),
        work_folder(tmp_path, "a"),
    ):
        pass


def test_last_good_passes_over_jumps_and_undefined() -> None:
    nan = float("nan")
    assert last_good([], 0.1) is None
    assert last_good([nan, 1.0, 1.05, 2.0, nan], 0.1) == 1.05


def test_run_name_depends_on_the_code_that_trains_and_not_on_its_comments(
    windows_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    towers = TEACHER.model.tower_module.model_copy(update={"kind": "my_towers:Mine"})
    model = TEACHER.model.model_copy(update={"tower_module": towers})
    settings = TEACHER.model_copy(update={"model": model})
    names = []
    for text in ("a = 1", "a = 1  # one", "a = 2"):
        (tmp_path / "my_towers.py").write_text(text)
        names.append(teacher._run_name(TrainingJob(windows_dir, settings, TRAIN, tmp_path)))
    assert names[0] == names[1] != names[2]
    code = teacher.teacher_code("recsys.distill.teacher", settings.model)
    assert {"my_towers", "recsys.data.loader", "recsys.distill.teacher"} <= code.modules.keys()
