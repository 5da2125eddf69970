"""Several nodes, as several agents on this machine: one world, and what is left of it when an agent is lost."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from recsys.config import InputError
from recsys.training.launch import PRELOAD, OtherNodeEnd, launch
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import TrainSettings
from tests.distributed.test_checkpoints import STEPS, everything, make_engine, settings_for, train_steps

LOST_AT = 3
BOUND_S = 90


def train(settings: TrainSettings, folder: Path, dies: bool, last: int = STEPS) -> dict[str, Tensor]:
    """Steps up to ``last`` with a checkpoint after each; this node is lost at step LOST_AT if it ``dies``."""
    engine = make_engine(settings)
    checkpoints = Checkpoints(folder, "run", keep=2)
    for step in range(checkpoints.restore(engine).batches, last):
        if dies and step == LOST_AT:
            agent = multiprocessing.parent_process()
            assert agent is not None and agent.pid is not None
            os.kill(agent.pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        train_steps(engine, step, step + 1)
        checkpoints.save(engine, Position(batches=step + 1))
    return everything(engine) | {"world_size": torch.tensor(engine.world_size)}


def run_node(settings: TrainSettings, folder: Path, dies: bool, answer: Path) -> None:
    """One agent; ``answer`` gets the results, or the error."""
    started = time.monotonic()
    result: Any
    try:
        result = launch(train, (settings, folder, dies), settings)[0]
    except OtherNodeEnd as end:
        result = f"ended with {end.code}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    torch.save((result, time.monotonic() - started), answer)


def node_settings(kind: str, ranks_per_node: int, port: int, **changes: Any) -> TrainSettings:
    nodes = {"count": 2, "rendezvous_endpoint": f"127.0.0.1:{port}", "last_call_s": 2, **changes.pop("nodes", {})}
    base = settings_for(kind, 2 * ranks_per_node, nodes=nodes, network_interface="lo", rank_timeout_s=60)
    return TrainSettings.model_validate(base.model_dump() | changes)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def two_nodes(settings: TrainSettings, port: int, folder: Path, second_dies: bool) -> Iterator[list[BaseProcess]]:
    """Two agents; the first holds the rendezvous."""
    (folder / "checkpoints").mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    agents: list[BaseProcess] = []
    for number in range(2):
        arguments = (settings, folder / "checkpoints", second_dies and number == 1, folder / f"{number}.pt")
        agent = context.Process(target=run_node, args=arguments)
        agent.start()
        agents.append(agent)
        while not listening(port):
            time.sleep(0.05)
    try:
        yield agents
    finally:
        for agent in agents:
            if agent.is_alive() and agent.pid is not None:
                for process in [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]:
                    process.kill()
            agent.join()


def answers(agents: list[BaseProcess], folder: Path) -> list[Any]:
    """What each agent that lived has answered."""
    for agent in agents:
        agent.join(BOUND_S)
        assert not agent.is_alive()
    return [torch.load(path, weights_only=False)[0] for path in sorted(folder.glob("*.pt"))]


def on_one_host(
    settings: TrainSettings, world_size: int, ranks_per_host: int, folder: Path, last: int = STEPS
) -> dict[str, Tensor]:
    """Train, or go on, on this host alone."""
    folder.mkdir(exist_ok=True)
    alone = settings.model_dump(exclude={"nodes"}) | {"world_size": world_size, "ranks_per_host": ranks_per_host}
    one = TrainSettings.model_validate(alone)
    return launch(train, (one, folder, False, last), one)[0]


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name, value in expected.items() if not torch.equal(value, state[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ranks_per_node"), [("row_wise", 1), ("table_row_wise", 2)])
def test_two_nodes_train_what_one_trains(kind: str, ranks_per_node: int, tmp_path: Path) -> None:
    port = free_port()
    settings = node_settings(kind, ranks_per_node, port)
    with two_nodes(settings, port, tmp_path / "two", second_dies=False) as agents:
        found = answers(agents, tmp_path / "two")
    assert [answer for answer in found if isinstance(answer, str)] == ["ended with 0"]
    state = next(answer for answer in found if isinstance(answer, dict))
    assert_same(state, on_one_host(settings, 2 * ranks_per_node, ranks_per_node, tmp_path / "one"))


@pytest.mark.slow
def test_lost_node_ends_the_other_with_one_clear_error(tmp_path: Path) -> None:
    port = free_port()
    settings = node_settings("row_wise", 1, port)
    started = time.monotonic()
    with two_nodes(settings, port, tmp_path / "two", second_dies=True) as agents:
        (answer,) = answers(agents, tmp_path / "two")
    assert answer.startswith("LostPeerError: the connection to another rank broke")
    assert time.monotonic() - started < BOUND_S


@pytest.mark.slow
def test_world_goes_on_without_a_lost_node_where_allowed(tmp_path: Path) -> None:
    port = free_port()
    settings = node_settings("row_wise", 1, port, nodes={"min_count": 1, "join_timeout_s": 60}, max_restarts=1)
    with two_nodes(settings, port, tmp_path / "two", second_dies=True) as agents:
        (answer,) = answers(agents, tmp_path / "two")
    assert isinstance(answer, dict), answer
    assert answer["world_size"].item() == 1
    on_one_host(settings, 2, 1, tmp_path / "one", last=LOST_AT)
    assert_same(answer, on_one_host(settings, 1, 1, tmp_path / "one"))


def test_node_that_nobody_joins_says_so() -> None:
    settings = node_settings("row_wise", 1, free_port(), nodes={"join_timeout_s": 2})
    with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+: fewer than 2 of 2 nodes came within 2 s") as caught:
        launch(train, (settings, Path(), False), settings)
    assert "\n" not in str(caught.value)
