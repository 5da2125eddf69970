"""Temporary files of a killed process are removed by the next start; those of a living one stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.scratch import LOCK_FILE, LONGEST_FOR_SOCKETS, PREFIX, SHORT, remove_left_behind

ROOT = Path(__file__).resolve().parents[2]
START = """
import sys
from recsys.scratch import scratch, temporary_files_in_scratch
import tempfile
folder = scratch()
with temporary_files_in_scratch():
    tempfile.mkdtemp(prefix="ranks-")
print(folder, flush=True)
sys.stdin.readline()
"""


def start(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process whose TMPDIR is ``folder``, and the folder in it that it has made."""
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("\n")
    assert process.returncode == 0


def test_what_a_killed_process_left_is_removed_by_the_next_start(tmp_path: Path) -> None:
    tmp_path = tmp_path / "tmp ü"  # a space and a letter beyond ASCII
    tmp_path.mkdir()
    (tmp_path / "of another program").mkdir()
    killed, left = start(tmp_path)
    living, held = start(tmp_path)
    assert {path.name[: len("ranks-")] for path in left.iterdir()} == {LOCK_FILE, "ranks-"}
    killed.kill()
    killed.wait()
    assert left.is_dir()
    last, _ = start(tmp_path)
    assert not left.exists()
    assert held.is_dir()
    end(last)
    end(living)
    assert [path.name for path in tmp_path.iterdir()] == ["of another program"]


def test_a_folder_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    young, old = tmp_path / f"{PREFIX}young", tmp_path / f"{PREFIX}old"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    remove_left_behind(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


@pytest.mark.parametrize("length", [1, 80])
def test_sockets_are_in_a_short_folder(length: int, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    code = (
        "import tempfile\nfrom recsys.scratch import scratch, temporary_files_in_scratch\n"
        "with temporary_files_in_scratch(for_sockets=True):\n    print(tempfile.mkdtemp())\n"
        "    print(scratch())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
    )
    socket, plain = map(Path, found.stdout.split())
    assert plain.parent == folder
    is_long = len(os.fsencode(folder)) > LONGEST_FOR_SOCKETS
    assert socket.parent.parent == (SHORT if is_long else folder)
    assert is_long or length == 1
    assert not socket.exists()
