"""Where a project may lie and who may run it: the same results everywhere, or one line."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import pytest

from flows.command_line import STATUS_OF_A_MISTAKE, exit_status, run_stage_flow
from flows.ingest import ingest
from flows.partition import partition
from recsys.config import InputError
from recsys.files import check_sums
from tasks import tracking, versioning
from tests.support.files import contents
from tests.support.forked_server import fork_the_server
from tests.support.projects import copy_project

NOBODY = 65534
NEW_MOUNTS = 0x20000  # CLONE_NEWNS
ROWS_LINE, FEWER_ROWS = "rows: 240000", "rows: 3000"
SETTINGS = {
    "data.max_windows": "5",
    "train.world_size": "2",
    "towers.partition.probe_windows": "1",
    "towers.partition.restarts": "1",
    "towers.partition.steps": "50",
}
# 1 MB of shared memory, TMPDIR on a file system of its own, a home that nobody may write. What lies
# in the home and is run from there, the interpreter, is kept
MOUNTS = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=1m tmpfs /dev/shm
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$TMPDIR"
mount --bind "$1" "$2"
mount -t tmpfs -o mode=755 tmpfs "$HOME"
case "$1" in "$HOME"/*) mkdir -p "$1"; mount --bind "$2" "$1";; esac
mount -o remount,ro "$HOME"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a small log, the copies of which lie elsewhere."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    description = folder / "params/datasets/synthetic.yaml"
    description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
    return folder


@pytest.mark.slow
def test_in_a_git_worktree(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = ("-c", "user.name=one", "-c", "user.email=one@example.com")
    for words in (
        ("add", "."),
        (*who, "commit", "--quiet", "--message", "all"),
        ("worktree", "add", "--quiet", str(tmp_path / "tree")),
    ):
        subprocess.run(["git", *words], cwd=project, check=True)
    monkeypatch.chdir(tmp_path / "tree")
    assert versioning.settled_stages("ingest") == {"ingest"}
    assert versioning.output_version(Path("data/code/ingest.json")) != "uncommitted"
    assert versioning.git_commit() != ""


@pytest.mark.slow
def test_without_git_a_line_says_what_to_do(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "no git"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".git"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(folder)
    said = "is not a git repository; run git init, or dvc config --local core.no_scm true"
    with pytest.raises(InputError, match=said):
        versioning.settled_stages("ingest")


@pytest.mark.parametrize("stage", [ingest, partition], ids=["ingest", "partition"])
def test_elsewhere_than_in_the_root_is_one_line(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status = exit_status(lambda: run_stage_flow(stage, Namespace(overrides=[])))
    said = capsys.readouterr().err
    assert status == STATUS_OF_A_MISTAKE
    assert said.startswith("error: params/") and said.count("\n") == 1
    assert contents(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_no_git_another_user_a_strange_path_little_shared_memory_and_a_closed_home(
    project: Path, tmp_path: Path
) -> None:
    folder, temporary = tmp_path / "mein Pröjekt – 日本", tmp_path / "temporary"
    ignored = shutil.ignore_patterns(".git", ".work")
    shutil.copytree(project, folder, symlinks=True, ignore=ignored)
    with (folder / ".dvc/config").open("a") as config:
        config.write("    no_scm = true\n")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    temporary.mkdir()
    (tmp_path / "interpreter").mkdir()
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):  # all below /tmp
        path.chmod(path.stat().st_mode | 0o055)
    process = get_context("forkserver").Process(target=work_there, args=(folder, temporary))
    process.start()
    process.join()
    output = (folder / "output.txt").read_text()
    assert process.exitcode == 0, output[-4000:]
    assert "Traceback" not in output
    assert list(temporary.iterdir()) == []
    for name, stage in (("data/windows", "ingest"), ("models/partition", "partition")):
        check_sums(folder / name, stage)
        assert (folder / name / "sums.json").stat().st_uid == NOBODY
    assert "models/partition" in (folder / "dvc.lock").read_text()


def work_there(folder: Path, temporary: Path) -> None:
    """Two stages, the second on two ranks, by the steps of the pipeline; the exit status."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT, 0o666)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, descriptor)
    assert ctypes.CDLL(None).unshare(NEW_MOUNTS) == 0
    os.environ |= {"TMPDIR": str(temporary), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    tempfile.tempdir = None
    kept = temporary.with_name("interpreter")
    subprocess.run(["sh", "-c", MOUNTS, "sh", sys.base_prefix, str(kept)], check=True)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.chdir(folder)
    current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]  # its parent's
    fork_the_server()

    def stages() -> None:
        assert versioning.settled_stages("ingest") == {"ingest"}
        for stage in (ingest, partition):
            with tracking.by_courier():
                run_stage_flow(stage, Namespace(overrides=SETTINGS if stage is ingest else {}))
            versioning.commit_stage(stage.name)
        assert versioning.code_version() == "no-git"
        assert versioning.git_commit() == ""

    sys.exit(exit_status(stages))
