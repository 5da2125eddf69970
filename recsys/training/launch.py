"""Run a function on several ranks of this host: torchrun's elastic API, gloo over the loopback."""

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from recsys.config import InputError
from recsys.training.memory import keep_freed_memory, return_freed_memory
from recsys.training.quiet import quiet_libraries

LOOPBACK = "127.0.0.1"
PRELOAD = ["torch", "torchrec", "recsys.training.engine"]
# Set by the operating system's loader for the ranks; spinning OpenMP threads make a shared host 30 times slower.
RANK_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "GLOO_SOCKET_IFNAME": "lo"}
FAILURE_SUFFIX = ".failure"
RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"
MEMORY_HINT = "; if nobody did it by hand, the machine ran out of memory: lower world_size or use smaller tables"
LAST_WORD_S = 0.5  # a rank that lost its peer ends after it, so that the agent sees the peer's end first


class RankKilledError(Exception):
    """A rank's process was ended from outside."""


def run_on_ranks(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    world_size: int,
    threads_per_rank: int,
    max_restarts: int = 0,
) -> list[Any]:
    """Call ``function(*arguments)`` on every rank, inside a gloo process group; its results by rank.

    One rank runs in this process. Several run as forkserver processes, so ``function`` must be
    importable and arguments and results picklable. When a rank fails or is killed, all ranks end; up
    to ``max_restarts`` times they are started anew, but not after an InputError. Then what went wrong
    last is raised here: an InputError as itself, the name of the signal that killed a rank, else the
    earliest exception as itself.
    """
    if world_size == 1:
        return [_run_here(function, arguments, threads_per_rank)]
    multiprocessing.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder, _environment(RANK_ENVIRONMENT), quiet_libraries():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world_size,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOOPBACK}:0",
            rdzv_configs={"is_host": True},
            local_addr=LOOPBACK,
            run_id=Path(folder).name,
            max_restarts=max_restarts,
            start_method="forkserver",
            shutdown_timeout=1,
        )
        try:
            results = elastic_launch(config, _rank_main)(function, arguments, threads_per_rank, folder)
        except ChildFailedError as error:
            raise _first_failure(Path(folder), error) from error
    return [results[rank] for rank in range(world_size)]


def _run_here(function: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> Any:
    """Rank 0 of 1, in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    with _environment({"GLOO_SOCKET_IFNAME": "lo"}):
        distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        with quiet_libraries():
            return function(*arguments)
    finally:
        distributed.destroy_process_group()
        torch.set_num_threads(before)
        return_freed_memory()


def _rank_main(function: Callable[..., Any], arguments: tuple[Any, ...], threads: int, failures: str) -> Any:
    """Body of one rank's process."""
    _die_with_parent()
    if any(isinstance(error, InputError) for _, error, _, _ in _read_failures(Path(failures))):
        os._exit(1)  # a restart mends no input
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        _join_group()
        with quiet_libraries():
            result = function(*arguments)
        distributed.barrier()
        distributed.destroy_process_group()
        return result
    except BaseException as error:  # DCP's CheckpointException is no Exception
        _write_failure(Path(failures), error)
        sys.stderr.flush()
        time.sleep(0.0 if isinstance(error, InputError) else LAST_WORD_S)
        os._exit(1)  # skip clean-up that would wait for the other ranks


def _join_group() -> None:
    """The process group of this attempt; the store still holds the addresses of the attempts before it."""
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(f"attempt-{os.environ[RESTART_COUNT]}", store)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)


def _die_with_parent() -> None:
    """No rank outlives a killed parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_failure(folder: Path, error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    attempt = int(os.environ.get(RESTART_COUNT, "0"))
    try:
        body = pickle.dumps((time.monotonic(), error, text, attempt))
        pickle.loads(body)
    except Exception:
        body = pickle.dumps((time.monotonic(), RuntimeError(f"{type(error).__name__}: {error}"), text, attempt))
    partial = folder / str(os.getpid())
    partial.write_bytes(body)
    partial.rename(partial.with_suffix(FAILURE_SUFFIX))


def _read_failures(folder: Path) -> list[tuple[float, BaseException, str, int]]:
    """(time, exception, traceback, attempt) of each rank's exception, from files they wrote in our own folder."""
    return [pickle.loads(path.read_bytes()) for path in folder.glob(f"*{FAILURE_SUFFIX}")]


def _first_failure(folder: Path, error: ChildFailedError) -> BaseException:
    """What the ranks of the last attempt died of."""
    failures = _read_failures(folder)
    for _, first, _, _ in failures:
        if isinstance(first, InputError):
            return first
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return RankKilledError(f"rank {rank} was killed by {name}{MEMORY_HINT if name == 'SIGKILL' else ''}")
    if not failures:
        return RuntimeError(f"rank {rank} ended with exit code {failure.exitcode} and left no message")
    last = max(attempt for _, _, _, attempt in failures)
    _, first, text, _ = min((f for f in failures if f[3] == last), key=lambda f: f[0])
    first.add_note(f"In a rank:\n{text}")
    return first


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """The environment with ``values``, as the ranks' processes inherit it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
