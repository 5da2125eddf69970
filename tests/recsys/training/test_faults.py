"""Ranks that are killed or hang: found in bounded time, named, restarted, and left out where
allowed."""

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from recsys.config import InputError
from recsys.training.launch import HungRankError, RankKilledError, launch
from recsys.training.launch_settings import LaunchSettings
from recsys.training.non_finite import NonFiniteLossError
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import TrainSettings
from tests.support.agents import Agent, start_agent
from tests.support.engines import STEPS, everything, make_engine, settings_for, train_steps

TIMEOUT_S = 3.0
LOST_AT = 3
MESSAGES = {
    "sleeps": r"rank 1 hung: no progress for 3 s \(rank_timeout_s\); "
    r"it was in rest \(.*test_faults.py",
    "spins": r"rank 1 hung: .* it was in spin \(",
    "is stopped": "rank 1 hung: .* its process is stopped by a signal",
    "waits elsewhere": "ranks 0, 1 wait in collectives for one another: .*distributed_c10d.py",
}
BOUND_S = 25.0  # start of the ranks, the timeout and the end, on a busy machine


def settings_with(**changes: Any) -> LaunchSettings:
    return LaunchSettings.model_validate({"world_size": 2, "rank_timeout_s": TIMEOUT_S, **changes})


def hang(way: str) -> None:
    """Rank 1 hangs in ``way``; rank 0 waits for it."""
    if distributed.get_rank() == 1:
        match way:
            case "sleeps":
                rest()
            case "spins":
                spin()
            case "is stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "waits elsewhere":
                distributed.recv(torch.zeros(1), src=0)
    distributed.barrier()


def rest() -> None:
    while True:
        time.sleep(0.2)


def spin() -> None:
    while True:
        pass


def work_and_wait(seconds: float) -> int:
    """Rank 1 works, with pauses, far longer than the timeout; rank 0 hears from it now and then."""
    deadline = time.monotonic() + seconds
    while True:
        over = torch.tensor(float(time.monotonic() > deadline))
        distributed.broadcast(over, src=1)
        if over:
            return distributed.get_rank()
        if distributed.get_rank() == 1:
            time.sleep(0.1)


def hang_once(folder: Path, way: str) -> int:
    attempts = len(list(folder.iterdir()))
    distributed.barrier()
    if distributed.get_rank() == 0:
        (folder / str(attempts)).touch()
    if attempts == 0:
        hang(way)
    distributed.barrier()
    return attempts


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Agent]]:
    """Launches that mostly wait for the timeout, all at the same time, by what their ranks do."""
    folder = tmp_path_factory.mktemp("hung")
    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...], LaunchSettings]] = {
        "works slowly": (work_and_wait, (3 * TIMEOUT_S,), settings_with()),
        "hangs once": (
            hang_once,
            (tmp_path_factory.mktemp("once"), "is stopped"),
            settings_with(max_restarts=1),
        ),
        **{way: (hang, (way,), settings_with()) for way in MESSAGES},
    }
    agents = {way: start_agent(launch, case, folder / way) for way, case in cases.items()}
    yield agents
    for agent in agents.values():
        agent.kill()


def fail_without_room() -> None:
    """Rank 1 fails where nothing can be written."""
    if distributed.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        raise ValueError("lost")
    distributed.barrier()


def test_a_rank_that_has_no_room_to_say_why_it_failed_is_a_full_disk() -> None:
    with pytest.raises(OSError, match="No space left on device") as raised:
        launch(fail_without_room, (), settings_with(rank_timeout_s=60.0))
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.slow
@pytest.mark.parametrize("way", MESSAGES)
def test_hung_rank_is_found_within_the_timeout_and_named(
    way: str, waiting: dict[str, Agent]
) -> None:
    with pytest.raises(HungRankError, match=MESSAGES[way]) as caught:
        waiting[way].outcome(2 * BOUND_S)
    assert waiting[way].seconds() < BOUND_S
    assert "\n" not in str(caught.value)
    stacks = [
        note for note in caught.value.__notes__ if "in hang" in note or "did not answer" in note
    ]
    assert len(stacks) == 2


@pytest.mark.slow
def test_slow_rank_is_left_alone(waiting: dict[str, Agent]) -> None:
    assert waiting["works slowly"].outcome(2 * BOUND_S) == [0, 1]


def test_group_starts_again_after_a_hung_rank(waiting: dict[str, Agent]) -> None:
    assert waiting["hangs once"].outcome(2 * BOUND_S) == [1, 1]


def die_above(smallest: int) -> int:
    """The last rank kills itself where there are more than ``smallest``."""
    if (
        distributed.get_world_size() > smallest
        and distributed.get_rank() == distributed.get_world_size() - 1
    ):
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()
    return distributed.get_world_size()


def test_world_shrinks_by_lost_ranks_as_far_as_allowed(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(die_above, (2,), settings_with(world_size=3, min_world_size=1)) == [2, 2]
    assert "ranks: rank 2 was killed by SIGKILL" in capfd.readouterr().err
    with pytest.raises(RankKilledError, match="rank 1 was killed by SIGKILL"):
        launch(die_above, (1,), settings_with(world_size=3, min_world_size=2))


def raise_key_error() -> None:
    raise KeyError(str(distributed.get_world_size()))


def test_error_of_a_ranks_own_does_not_shrink_the_world() -> None:
    with pytest.raises(KeyError, match="2"):
        launch(raise_key_error, (), settings_with(min_world_size=1))


def test_world_shrinks_by_whole_hosts() -> None:
    settings = settings_with(world_size=6, ranks_per_host=2, min_world_size=3)
    assert settings.smaller_world(6) == 4
    assert settings.smaller_world(4) is None
    assert settings_with().smaller_world(2) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"device": "cuda"},
            "Settings: key 'device': cuda: torch sees no CUDA device; set device: cpu",
        ),
        (
            {"network_interface": "none0"},
            "Settings: key 'network_interface': 'none0' has no IPv4 address.*lo",
        ),
    ],
)
def test_what_this_machine_has_not_is_said_before_ranks_start(
    changes: dict[str, Any], message: str
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match=message):
        launch(raise_key_error, (), settings_with(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_world_size": 3}, "at most world_size 2"),
        (
            {"nodes": {"count": 2, "rendezvous_endpoint": "a:1"}},
            "network_interface: 2 nodes need the name",
        ),
        ({"nodes": {"count": 2}, "network_interface": "lo"}, "need rendezvous_endpoint"),
        (
            {"nodes": {"count": 3, "rendezvous_endpoint": "a:1"}, "network_interface": "lo"},
            "not a multiple of count 3",
        ),
        (
            {"nodes": {"count": 2, "min_count": 3, "rendezvous_endpoint": "a:1"}},
            "min_count 3 is above count 2",
        ),
        (
            {
                "nodes": {"count": 2, "rendezvous_endpoint": "a:1"},
                "network_interface": "lo",
                "min_world_size": 1,
            },
            "shrink by entire nodes",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings_with(**changes)


def train_and_lose(
    settings: TrainSettings, folder: Path, lose: bool, last: int
) -> dict[str, Tensor]:
    """Steps up to ``last`` with a checkpoint after each; of three ranks one kills itself at step 3
    if ``lose``."""
    engine = make_engine(settings)
    checkpoints = Checkpoints(folder, "run", keep=2)
    for step in range(checkpoints.restore(engine).batches, last):
        if lose and step == LOST_AT and engine.world_size == 3 and engine.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        train_steps(engine, step, step + 1)
        checkpoints.save(engine, Position(batches=step + 1))
    return everything(engine)


@pytest.mark.slow
def test_smaller_world_goes_on_from_the_last_checkpoint_as_if_started_there(tmp_path: Path) -> None:
    lost, calm = tmp_path / "lost", tmp_path / "calm"
    lost.mkdir()
    calm.mkdir()
    settings = settings_for("row_wise", 3, min_world_size=2)
    state = launch(train_and_lose, (settings, lost, True, STEPS), settings)
    assert len(state) == 2
    launch(train_and_lose, (settings, calm, False, LOST_AT), settings)
    two = settings_for("row_wise", 2)
    expected = launch(train_and_lose, (two, calm, False, STEPS), two)
    assert [
        name for name, value in expected[0].items() if not torch.equal(value, state[0][name])
    ] == []


def meet_a_nan(folder: Path) -> None:
    (folder / f"{os.environ['TORCHELASTIC_RESTART_COUNT']}-{distributed.get_rank()}").touch()
    if distributed.get_rank() == 1:
        raise NonFiniteLossError(3, ["the labels"], window="w1")
    distributed.barrier()


def test_group_does_not_start_again_where_it_would_meet_the_same_data(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"^step 3, window w1: the loss"):
        launch(meet_a_nan, (tmp_path,), settings_with(max_restarts=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "0-1"]
