"""Run a function on several ranks, on one host or several nodes, with torchrun's elastic API."""

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from recsys.config import InputError
from recsys.scratch import temporary_files_in_scratch
from recsys.training.failures import (
    HungRankError,
    LostPeerError,
    LostRankError,
    RankKilledError,
    first_failure,
    read_failures,
)
from recsys.training.heartbeat import watching
from recsys.training.launch_settings import LOOPBACK_INTERFACE, LaunchSettings
from recsys.training.memory import keep_freed_memory, return_freed_memory
from recsys.training.one_host import LOOPBACK, ONE_HOST_BACKEND
from recsys.training.quiet import quiet_libraries
from recsys.training.rank_process import join_group, network_environment, rank_main
from recsys.upstream import HashStore

__all__ = [
    "HungRankError",
    "LostRankError",
    "OtherNodeEnd",
    "RankKilledError",
    "launch",
    "run_on_ranks",
    "start_server",
]

LIBRARY = __name__.partition(".")[0]
PRELOAD = ["torch", "torchrec", f"{LIBRARY}.training.engine"]
# Read when the ranks' processes are loaded; spinning OpenMP threads make a shared host 30 times
# slower. FBGEMM looks for GPUs when it is imported; unless torch asks NVML instead of CUDA, no
# process forked from the server could use one.
RANK_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
# A fresh store each time nodes meet; a shared one would stay at the address of a node that may be
# lost.
SEVERAL_NODES_ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
_MAIN_MODULE = threading.RLock()


class OtherNodeEnd(SystemExit):
    """This node's ranks are done; node 0 has the results and writes them. The exit code is 0."""

    def __init__(self) -> None:
        super().__init__(0)


def run_on_ranks(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    world_size: int,
    threads_per_rank: int,
    max_restarts: int = 0,
) -> list[Any]:
    """:func:`launch` on the CPUs of this host."""
    settings = LaunchSettings(
        world_size=world_size, threads_per_rank=threads_per_rank, max_restarts=max_restarts
    )
    return launch(function, arguments, settings)


def launch(
    function: Callable[..., Any], arguments: tuple[Any, ...], settings: LaunchSettings
) -> list[Any]:
    """Call ``function(*arguments)`` on every rank, inside a process group; returns the results by
    rank.

    A single rank without restarts runs in this process. Otherwise ranks run as forkserver
    processes, so ``function`` must be importable, and arguments and results picklable. If a rank
    fails, is killed or hangs, all ranks end. They are started again up to ``max_restarts`` times,
    but not after an InputError or a NonFiniteError. After that, if ranks were lost without another
    error, training continues without them if ``min_world_size`` allows. ``function`` must therefore
    be able to run again with another number of ranks. If nothing helps, the last error is raised.

    On several nodes, this process runs its own node's ranks. Each node must call it with arguments
    that mean the same on a shared file system.

    Raises:
        InputError: a rank raised it, or the settings do not fit this machine.
        LostRankError: a rank was killed, hung, or cannot be reached.
        OtherNodeEnd: everything succeeded, and this is not node 0.
    """
    _check_machine(settings)
    if settings.world_size == 1 and settings.max_restarts == 0:
        return [_run_here(function, arguments, settings)]
    start_server()
    if settings.nodes.count > 1:
        return _on_nodes(function, arguments, settings)
    world_size = settings.world_size
    while True:
        try:
            results = _elastic(function, arguments, settings, _one_host(world_size))
            return [results[rank] for rank in range(world_size)]
        except LostRankError as error:
            smaller = settings.smaller_world(world_size)
            if smaller is None:
                raise
            print(
                f"ranks: {error}; going on with {smaller} of {world_size}",
                file=sys.stderr,
                flush=True,
            )
            world_size = smaller


def start_server(*modules: str) -> None:
    """Start the process from which ranks are forked, if there is none. It imports what they need:
    the modules of this library that its caller has imported, and ``modules``.

    This happens in parallel with the caller: if started early, it is ready when ranks are needed.
    """
    imported = sorted(name for name in sys.modules if name.startswith(f"{LIBRARY}."))
    multiprocessing.set_forkserver_preload([*PRELOAD, *imported, *modules])
    with _environment(RANK_ENVIRONMENT), temporary_files_in_scratch(for_sockets=True):
        forkserver.ensure_running()


@contextmanager
def main_module_stays_here(*sent: Any) -> Iterator[None]:
    """Processes started inside do not import the program's main module again.

    ``multiprocessing`` would import it in each process, with everything it imports: for a Prefect
    flow, two seconds per rank. They need it only if ``sent``, what they are given, contains
    something from it. Threads take turns.
    """
    main = vars(sys.modules["__main__"])
    if b"__main__" in pickle.dumps(sent):
        yield
        return
    with _MAIN_MODULE:
        saved = {name: main.get(name) for name in ("__spec__", "__file__")}
        main |= dict.fromkeys(saved)
        try:
            yield
        finally:
            main |= saved


def _one_host(world_size: int) -> dict[str, Any]:
    return {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": world_size,
        "rdzv_backend": ONE_HOST_BACKEND,
        "local_addr": LOOPBACK,
    }


def _on_nodes(
    function: Callable[..., Any], arguments: tuple[Any, ...], settings: LaunchSettings
) -> list[Any]:
    """This node's part of a run on several nodes; returns the results on node 0."""
    nodes = settings.nodes
    meeting = {
        "min_nodes": nodes.min_count or nodes.count,
        "max_nodes": nodes.count,
        "nproc_per_node": settings.ranks_per_node,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": nodes.rendezvous_endpoint,
        "rdzv_configs": {
            "last_call_timeout": nodes.last_call_s,
            "join_timeout": nodes.join_timeout_s,
            "keep_alive_interval": nodes.keep_alive_s,
        },
        "local_addr": _address(settings),
        "run_id": f"{function.__module__}.{function.__qualname__}",
    }
    where = f"{settings.where('nodes.rendezvous_endpoint')}: {nodes.rendezvous_endpoint}"
    try:
        results = _elastic(function, arguments, settings, meeting)
    except RendezvousTimeoutError as error:
        raise InputError(
            f"{where}: fewer than {meeting['min_nodes']} of {nodes.count} nodes came within "
            f"{nodes.join_timeout_s} s "
            "(join_timeout_s); run the same command on each node"
        ) from error
    except RendezvousError as error:
        raise LostPeerError(
            f"{where}: no connection to this node, which holds the list of nodes: {error}"
        ) from error
    if 0 not in results:
        print(
            "ranks: this node has done its part; node 0 writes the results",
            file=sys.stderr,
            flush=True,
        )
        raise OtherNodeEnd
    return results[0]


def _elastic(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    settings: LaunchSettings,
    where: Mapping[str, Any],
) -> dict[int, Any]:
    """Run this node's ranks; returns their results, by rank."""
    several = settings.nodes.count > 1
    environment = RANK_ENVIRONMENT | (SEVERAL_NODES_ENVIRONMENT if several else {})
    with (
        temporary_files_in_scratch(),
        tempfile.TemporaryDirectory(prefix="ranks-") as name,
        _environment(environment),
        quiet_libraries(),
        main_module_stays_here(function, arguments),
    ):
        folder = Path(name)
        options: dict[str, Any] = {
            "run_id": folder.name,
            "max_restarts": settings.max_restarts,
            **where,
        }
        config = LaunchConfig(start_method="forkserver", shutdown_timeout=1, **options)
        try:
            with watching(folder, settings.rank_timeout_s, whole_world=not several):
                return elastic_launch(config, rank_main)(function, arguments, settings, name)
        except ChildFailedError as error:
            raise first_failure(folder, error) from error
        except RendezvousError:
            failures = [
                error
                for _, error, _, _ in read_failures(folder)
                if not isinstance(error, LostPeerError)
            ]
            if failures:
                raise failures[-1] from None
            raise


def _run_here(
    function: Callable[..., Any], arguments: tuple[Any, ...], settings: LaunchSettings
) -> Any:
    """Run as rank 0 of 1 in this process, in the group that an engine may already have started."""
    if distributed.is_initialized() and distributed.get_world_size() == 1:
        return function(*arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads_per_rank)
    keep_freed_memory()
    with _environment(network_environment(settings)):
        join_group(settings, HashStore(), 0, 1)
    try:
        with quiet_libraries():
            return function(*arguments)
    finally:
        distributed.destroy_process_group()
        torch.set_num_threads(before)
        return_freed_memory()


def _check_machine(settings: LaunchSettings) -> None:
    """Check that this machine has what the settings need.

    Raises:
        InputError: it lacks the GPUs or the interface.
    """
    if settings.network_interface is not None:
        _address(settings)
    if settings.device == "cpu":
        return
    if not torch.cuda.is_available():
        raise InputError(
            f"{settings.where('device')}: cuda: torch sees no CUDA device; set device: cpu"
        )
    found = torch.cuda.device_count()
    if found < settings.ranks_per_node:
        raise InputError(
            f"{settings.where('device')}: cuda: {settings.ranks_per_node} ranks on a node need as "
            f"many GPUs, torch sees {found}; lower world_size"
        )


def _address(settings: LaunchSettings) -> str:
    """The IPv4 address of the interface for the ranks' traffic.

    Raises:
        InputError: there is no such interface, or it has no address.
    """
    interfaces = psutil.net_if_addrs()
    for address in interfaces.get(settings.interface, []):
        if address.family == socket.AF_INET:
            return address.address
    raise InputError(
        f"{settings.where('network_interface')}: {settings.interface!r} has no IPv4 address here; "
        f"there are: {', '.join(sorted(interfaces)) or LOOPBACK_INTERFACE}"
    )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set ``values`` in the environment during the block, for the ranks' processes to inherit."""
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
