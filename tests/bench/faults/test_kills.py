"""The campaign's short form: a teacher killed at random ends with the bytes of a calm one."""

import random
from collections.abc import Iterator
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from bench.faults.kills import campaign, hashes, strike
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.training.launch import start_server
from tests.support.toy_stream import TEACHER, TRAIN

KILLS = 10
OUTPUT = "output"


def train(windows: Path, folder: Path) -> None:
    output = folder / OUTPUT
    output.mkdir(parents=True, exist_ok=True)
    settings = TEACHER.model_copy(update={"checkpoint_every_batches": 2})
    train_teacher(TrainingJob(windows, settings, TRAIN, output), folder / "resume")


def test_a_teacher_killed_at_random_ends_with_the_bytes_of_a_calm_one(
    windows_dir: Path, tmp_path: Path
) -> None:
    start_server()

    def start(folder: Path) -> int:
        process = get_context("forkserver").Process(target=train, args=(windows_dir, folder))
        process.start()
        assert process.pid is not None
        return process.pid

    def folders() -> Iterator[Path]:
        for number in count():
            folder = tmp_path / str(number)
            folder.mkdir()
            yield folder

    found = campaign(start, folders(), [OUTPUT], KILLS, seed=1)
    assert [one.same for one in found] == [True] * KILLS
    assert any(one.hit for one in found)
    assert not any(one.left for one in found)


def test_other_bytes_and_missing_files_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / OUTPUT
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    before = hashes(tmp_path, [OUTPUT])
    assert before.keys() == {f"{OUTPUT}/a"}
    (folder / "a").write_bytes(b"2")
    assert hashes(tmp_path, [OUTPUT]) != before
    (folder / "a").unlink()
    assert hashes(tmp_path, [OUTPUT]) == {}


@pytest.mark.parametrize("victim", ["the tree", "the parent"])
def test_a_victim_is_killed(victim: str) -> None:
    process = psutil.Popen(["sleep", "60"])
    assert strike(process, [], victim, random.Random(1))
    assert process.wait() == -9
