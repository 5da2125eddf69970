"""The teacher on two nodes that share a file system: node 0 writes what one node writes, the other
nothing."""

from pathlib import Path

import pytest

from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.training.settings import TrainSettings
from tests.support.agents import start_agent
from tests.support.files import contents
from tests.support.killing import BOUND_S
from tests.support.ports import free_port
from tests.support.toy_stream import TEACHER, TRAIN


def teacher_of_node(windows: Path, train: TrainSettings, output: Path, resume: Path) -> None:
    output.mkdir(parents=True)
    train_teacher(TrainingJob(windows, TEACHER, train, output), resume)


@pytest.mark.slow
def test_first_node_writes_what_one_node_writes(windows_dir: Path, tmp_path: Path) -> None:
    one = TRAIN.model_copy(update={"world_size": 2, "ranks_per_host": 1})
    nodes = {"count": 2, "rendezvous_endpoint": f"127.0.0.1:{free_port()}"}
    two = TrainSettings.model_validate(
        one.model_dump() | {"nodes": nodes, "network_interface": "lo"}
    )
    folders = [tmp_path / "first", tmp_path / "second"]
    agents = [
        start_agent(
            teacher_of_node,
            (windows_dir, two, folder, tmp_path / "resume"),
            folder.with_suffix(".answer"),
        )
        for folder in folders
    ]
    teacher_of_node(windows_dir, one, tmp_path / "one", tmp_path / "resume of one")
    assert {agent.outcome(BOUND_S) for agent in agents} == {None, "ended with 0"}
    nothing, written = sorted((contents(folder) for folder in folders), key=len)
    assert nothing == {}
    assert written == contents(tmp_path / "one")
