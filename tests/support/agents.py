"""Processes that launch ranks, as a command of the user's does: several side by side, or one that
is lost."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from recsys.training.launch import OtherNodeEnd, start_server


@dataclass
class Agent:
    """A started one."""

    process: BaseProcess
    answer: Path

    def outcome(self, bound_s: float) -> Any:
        """What its function returned, or how it ended as a node that has no results; what it raised
        is raised."""
        self.process.join(bound_s)
        assert not self.process.is_alive()
        result, error, _ = pickle.loads(self.answer.read_bytes())
        if error is not None:
            raise error
        return result

    def seconds(self) -> float:
        """How long it took."""
        return pickle.loads(self.answer.read_bytes())[2]

    def kill(self) -> None:
        """Its ranks end with it."""
        self.process.kill()
        self.process.join()


def start_agent(function: Callable[..., Any], arguments: tuple[Any, ...], answer: Path) -> Agent:
    """Call ``function`` in a process whose ranks are forked from our server; ``answer``: a file for
    the outcome."""
    start_server()
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    process = get_context("forkserver").Process(
        target=_run, args=(address, function, arguments, answer)
    )
    process.start()
    return Agent(process, answer)


def _run(
    address: str, function: Callable[..., Any], arguments: tuple[Any, ...], answer: Path
) -> None:
    _use_server(address)
    started = time.monotonic()
    result, error = None, None
    try:
        result = function(*arguments)
    except OtherNodeEnd as end:
        result = f"ended with {end.code}"
    except Exception as raised:
        error = raised
    answer.write_bytes(pickle.dumps((result, error, time.monotonic() - started)))


def _use_server(address: str) -> None:
    """Python 3.11 does not tell a forked process of the server; it would start one of its own, in
    seconds."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address = address
    forkserver.ensure_running = server.ensure_running = lambda: None
