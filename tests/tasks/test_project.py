"""A stage's outputs appear whole or not at all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.config import InputError
from recsys.files import SUMS_FILE, check_sums, read_json
from tasks.project import replacing


def test_outputs_take_their_places_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "models" / "teacher"
    with replacing(target) as (folder,):
        (folder / "weights").write_text("new")
        assert not target.exists()
    assert (target / "weights").read_text() == "new"


def test_a_failure_leaves_the_old_outputs_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "teacher"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as (folder,):
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_what_a_killed_run_left_is_removed_and_a_running_one_is_not_touched(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    host = socket.gethostname()
    left = tmp_path / f".teacher-{host}-{dead.stdout.strip()}-abc"
    running = tmp_path / f".teacher-{host}-{os.getppid()}-abc"
    elsewhere = tmp_path / f".teacher-another{host}-{dead.stdout.strip()}-abc"
    for folder in (left, running, elsewhere):
        folder.mkdir()
    with replacing(tmp_path / "teacher"):
        pass
    assert not left.exists()
    assert running.exists()
    assert elsewhere.exists()


def test_what_a_run_killed_between_two_renames_has_moved_away_is_put_back(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    moved = tmp_path / f".teacher-{socket.gethostname()}-{dead.stdout.strip()}-abc-old"
    moved.mkdir()
    (moved / "weights").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "teacher"):
        raise RuntimeError
    assert (tmp_path / "teacher" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_the_sums_of_an_output_are_those_of_its_files(tmp_path: Path) -> None:
    target = tmp_path / "teacher"
    with replacing(target) as (folder,):
        (folder / "snapshots").mkdir()
        (folder / "snapshots/weights").write_text("new")
    check_sums(target, "towerflow teacher")
    (target / "snapshots/weights").write_text("old")
    with pytest.raises(InputError, match=r"snapshots/weights: is damaged .*towerflow teacher"):
        check_sums(target, "towerflow teacher")
    assert list(read_json(target / SUMS_FILE)) == ["snapshots/weights"]
