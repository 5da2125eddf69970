"""The body of a rank's process: join the group, run the function, report failures."""

import atexit
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from recsys.config import InputError
from recsys.training.failures import LASTING, RESTART_COUNT, read_failures, write_failure
from recsys.training.heartbeat import report_progress
from recsys.training.launch_settings import LaunchSettings
from recsys.training.memory import keep_freed_memory
from recsys.training.quiet import quiet_libraries
from recsys.upstream import HashStore, PrefixStore, Store

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
LOCAL_RANK = "LOCAL_RANK"
# A rank that lost its peer ends after a delay, so that the agent sees the peer's end first. Errors
# about lost peers have many types; only errors that are certainly the rank's own end at once.
LAST_WORD_S = 0.5
# Multiple of the rank timeout: the missing rank is detected before its peers give up
COLLECTIVE_TIMEOUTS = 2


def rank_main(
    function: Callable[..., Any], arguments: tuple[Any, ...], settings: LaunchSettings, folder: str
) -> Any:
    """Call ``function(*arguments)`` inside the process group; on several nodes, returns every
    rank's result, by rank."""
    die_with_parent()
    if any(isinstance(error, LASTING) for _, error, _, _ in read_failures(Path(folder))):
        os._exit(1)
    report_progress(Path(folder), settings.rank_timeout_s)
    os.environ.update(network_environment(settings))
    torch.set_num_threads(settings.threads_per_rank)
    keep_freed_memory()
    try:
        store, rank, world_size = next(rendezvous("env://"))
        if settings.nodes.count == 1:  # the store still holds the addresses of earlier attempts
            store = PrefixStore(f"attempt-{os.environ[RESTART_COUNT]}", store)
        join_group(settings, store, rank, world_size)
        with quiet_libraries():
            result = function(*arguments)
        result = _from_all_ranks(result) if settings.nodes.count > 1 else result
        distributed.barrier()
        distributed.destroy_process_group()
        return result
    except BaseException as error:  # DCP's CheckpointException is not an Exception
        try:
            write_failure(Path(folder), error)
        except OSError:  # no room even for that
            os._exit(os.EX_IOERR)
        sys.stderr.flush()
        time.sleep(0.0 if isinstance(error, LASTING) else LAST_WORD_S)
        os._exit(1)  # skip clean-up, which would wait for the other ranks


def network_environment(settings: LaunchSettings) -> dict[str, str]:
    """Environment variables that name the interface of the ranks' traffic."""
    return {"GLOO_SOCKET_IFNAME": settings.interface, "NCCL_SOCKET_IFNAME": settings.interface}


def join_group(settings: LaunchSettings, store: Store, rank: int, world_size: int) -> None:
    """Create the default process group: gloo for tensors on the CPU, NCCL for those on the rank's
    own GPU."""
    if settings.device == "cuda":
        torch.cuda.set_device(int(os.environ.get(LOCAL_RANK, "0")))
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUTS * settings.rank_timeout_s)
    distributed.init_process_group(
        BACKENDS[settings.device], store=store, rank=rank, world_size=world_size, timeout=timeout
    )


def join_if_alone(settings: LaunchSettings) -> None:
    """If this process is not in a process group, start one with a single rank, which lasts until
    the process ends.

    Raises:
        InputError: the settings want several ranks.
    """
    if distributed.is_initialized():
        return
    if settings.world_size > 1:
        raise InputError(
            f"{settings.where('world_size')}: {settings.world_size} ranks, but this process is not "
            "a rank; make the engine in a function that recsys.training.launch.launch calls on "
            "every rank, or set 1"
        )
    os.environ.update(network_environment(settings))
    join_group(settings, HashStore(), 0, 1)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _from_all_ranks(result: Any) -> list[Any]:
    results: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(results, result)
    return results


def die_with_parent() -> None:
    """End this process, which multiprocessing started, when its parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
