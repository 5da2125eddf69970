"""Several nodes, as several agents on this machine: one world, and what is left of it when an agent
is lost."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.config import InputError
from recsys.training.failures import LostPeerError
from recsys.training.launch import launch
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import TrainSettings
from tests.support.agents import Agent, start_agent
from tests.support.engines import STEPS, everything, make_engine, settings_for, train_steps
from tests.support.ports import free_port

LOST_AT = 3
BOUND_S = 90
# Ranks a node of the pairs that nothing happens to, by kind
WHOLE = {"row_wise": 1, "table_row_wise": 2}


def train(
    settings: TrainSettings, folder: Path, dies: bool, last: int = STEPS
) -> dict[str, Tensor]:
    """Steps up to ``last`` with a checkpoint after each; this node is lost at step LOST_AT if it
    ``dies``."""
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


def launch_train(
    settings: TrainSettings, folder: Path, dies: bool, last: int = STEPS
) -> dict[str, Tensor]:
    """Rank 0's results."""
    return launch(train, (settings, folder, dies, last), settings)[0]


def node_settings(kind: str, ranks_per_node: int, port: int, **changes: Any) -> TrainSettings:
    waits = {"last_call_s": 2, "keep_alive_s": 2}
    nodes = {
        "count": 2,
        "rendezvous_endpoint": f"127.0.0.1:{port}",
        **waits,
        **changes.pop("nodes", {}),
    }
    base = settings_for(
        kind, 2 * ranks_per_node, nodes=nodes, network_interface="lo", rank_timeout_s=60
    )
    return TrainSettings.model_validate(base.model_dump() | changes)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Nodes:
    """Two agents; the first holds the rendezvous."""

    settings: TrainSettings
    agents: list[Agent]
    folder: Path


def start_nodes(settings: TrainSettings, port: int, folder: Path, second_dies: bool) -> Nodes:
    (folder / "checkpoints").mkdir(parents=True)
    agents = []
    for number in range(2):
        arguments = (settings, folder / "checkpoints", second_dies and number == 1)
        agents.append(start_agent(launch_train, arguments, folder / f"{number}.answer"))
        while not listening(port):
            time.sleep(0.05)
    return Nodes(settings, agents, folder)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Nodes]]:
    """Every pair that a test asks about, all at the same time: most of their time they wait for one
    another."""
    goes_on = {"nodes": {"min_count": 1, "join_timeout_s": 60}, "max_restarts": 1}
    cases: dict[str, tuple[str, int, bool, dict[str, Any]]] = {
        "goes on": ("row_wise", 1, True, goes_on),
        "lost": ("row_wise", 1, True, {}),
        **{kind: (kind, ranks_per_node, False, {}) for kind, ranks_per_node in WHOLE.items()},
    }
    started: dict[str, Nodes] = {}
    try:
        for name, (kind, ranks_per_node, second_dies, changes) in cases.items():
            port = free_port()
            settings = node_settings(kind, ranks_per_node, port, **changes)
            started[name] = start_nodes(
                settings, port, tmp_path_factory.mktemp("nodes"), second_dies
            )
        yield started
    finally:
        for pair in started.values():
            for agent in pair.agents:
                agent.kill()


def on_one_host(
    settings: TrainSettings, world_size: int, ranks_per_host: int, folder: Path, last: int = STEPS
) -> dict[str, Tensor]:
    """Train, or go on, on this host alone."""
    folder.mkdir(exist_ok=True)
    alone = settings.model_dump(exclude={"nodes"}) | {
        "world_size": world_size,
        "ranks_per_host": ranks_per_host,
    }
    one = TrainSettings.model_validate(alone)
    return launch_train(one, folder, False, last)


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name, value in expected.items() if not torch.equal(value, state[name])] == []


def test_node_that_nobody_joins_says_so(nodes: dict[str, Nodes]) -> None:
    settings = node_settings("row_wise", 1, free_port(), nodes={"join_timeout_s": 2})
    with pytest.raises(
        InputError, match=r"127\.0\.0\.1:\d+: fewer than 2 of 2 nodes came within 2 s"
    ) as caught:
        launch(train, (settings, Path(), False), settings)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_two_nodes_train_what_one_trains(
    kind: str, nodes: dict[str, Nodes], tmp_path: Path
) -> None:
    pair = nodes[kind]
    expected = on_one_host(pair.settings, 2 * WHOLE[kind], WHOLE[kind], tmp_path / "one")
    found = [agent.outcome(BOUND_S) for agent in pair.agents]
    assert [answer for answer in found if isinstance(answer, str)] == ["ended with 0"]
    state = next(answer for answer in found if isinstance(answer, dict))
    assert_same(state, expected)


@pytest.mark.slow
def test_lost_node_ends_the_other_with_one_clear_error(nodes: dict[str, Nodes]) -> None:
    first, second = nodes["lost"].agents
    with pytest.raises(LostPeerError, match=r"^the connection to another rank broke"):
        first.outcome(BOUND_S)
    second.process.join(BOUND_S)
    assert second.process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_world_goes_on_without_a_lost_node_where_allowed(
    nodes: dict[str, Nodes], tmp_path: Path
) -> None:
    pair = nodes["goes on"]
    on_one_host(pair.settings, 2, 1, tmp_path / "one", last=LOST_AT)
    expected = on_one_host(pair.settings, 1, 1, tmp_path / "one")
    answer = pair.agents[0].outcome(BOUND_S)
    assert answer["world_size"].item() == 1
    assert_same(answer, expected)
