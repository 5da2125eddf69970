"""Two runs at once in one project: one goes on, the other says so in a line and writes nothing."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import run as run_command
from flows.augment import augment
from flows.baselines import baselines
from flows.command_line import STATUS_OF_A_MISTAKE, apply_overrides, exit_status
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.partition import partition
from flows.pipeline import pipeline
from flows.register import register
from flows.stream import stream
from flows.students import students
from flows.teacher import teacher
from tests.support.files import contents
from tests.support.projects import ROOT, copy_project, environment

WRITERS = (ingest, baselines, partition, teacher, augment, students, evaluate, register, stream)
COMMANDS = {one.name: one.fn for one in (*WRITERS, pipeline)} | {
    "towerflow run": lambda: run_command.run(Namespace(overrides=[])),
    "--set": lambda: apply_overrides({"data.max_windows": "3"}),
}
HOLDER = """
from tasks.nodes import alone_but_for_nodes
with alone_but_for_nodes("running augment"):
    print("held", flush=True)
    input()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of the project in ``folder``, as a stage that runs does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which another process works."""
    folder = tmp_path_factory.mktemp("busy")
    shutil.copytree(ROOT / "params", folder / "params")
    process = holder(folder)
    yield folder
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_says_who_is_at_it_and_writes_nothing(
    name: str, busy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(busy)
    before = contents(busy)
    status = exit_status(COMMANDS[name])
    assert status == STATUS_OF_A_MISTAKE
    said = capsys.readouterr().err
    assert said.startswith("error: .work/project.lock: another run is running augment (process ")
    assert said.rstrip().endswith("minutes); wait for it to end")
    assert said.count("\n") == 1
    assert contents(busy) == before


def test_a_stage_inside_the_pipeline_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.project import alone

    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with alone("running the pipeline"), alone("running ingest"):
            pass


def test_nodes_of_one_launch_share_and_others_stay_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.nodes import alone_but_for_nodes
    from tasks.project import PROJECT_LOCK, only_one

    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    apply_overrides(
        {
            "train.world_size": "2",
            "train.nodes": "{count: 2, rendezvous_endpoint: 'node:29400'}",
            "train.network_interface": "lo",
        }
    )
    process = holder(tmp_path)
    try:
        with alone_but_for_nodes("running teacher"):
            pass
        status = exit_status(only_one(PROJECT_LOCK, "running ingest").__enter__)
    finally:
        process.kill()
        process.communicate()
    assert status == STATUS_OF_A_MISTAKE
    assert "another run is running teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_dvc_repro_beside_a_run_ends_with_that_line_and_no_output(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    process = holder(folder)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "ingest"],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        process.kill()
        process.communicate()
    assert result.returncode != 0
    lines = [one for one in result.stderr.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1
    assert "another run is running augment" in lines[0]
    assert "Traceback" not in result.stderr
    assert not (folder / "data/windows").exists()
