"""Several hosts on one machine: network namespaces joined by a bridge, each with an egress rate;
gloo ranks inside.

Each host is a network namespace with an address of its own and a token bucket on its link (``tc``'s
tbf). Traffic between ranks of one host never leaves the namespace's loopback. The bridge has a
namespace of its own, so the machine's own network is not touched, and every namespace lives only as
long as a process of this benchmark: also after a ``kill -9`` nothing is left behind.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import distributed

from recsys.training.launch import PRELOAD

INTERFACE = "eth0"
NETWORK = "10.77.0"  # a /24 inside the namespaces
PORT = 29500
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
BURST_MS = 4  # of the token bucket; below it, tbf cannot keep the rate
SMALLEST_BURST_BYTES = 131072
QUEUE_MS = 400  # how long a packet may wait; the queue never drops what TCP may have in flight here
STARTED = b"+"
LONGEST_CALL_S = 600.0
# Namespaces resolve no names, of which c10d warns once a rank; the ranks inherit it from the server
# they start from.
SERVER_ENVIRONMENT = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}

libc = ctypes.CDLL(None, use_errno=True)
Command = tuple[Callable[..., Any], tuple[Any, ...]]


class ClusterUnavailableError(Exception):
    """This machine lets this user make no network namespaces."""


@dataclass(frozen=True)
class Shape:
    """``hosts`` hosts of ``ranks_per_host`` ranks."""

    hosts: int
    ranks_per_host: int

    @property
    def world_size(self) -> int:
        """Ranks of all hosts."""
        return self.hosts * self.ranks_per_host


class Cluster:
    """Ranks of a running cluster; see :func:`cluster`."""

    def __init__(self, shape: Shape, hosts: list[int], pipes: list[Connection]) -> None:
        self.shape, self._hosts, self._pipes = shape, hosts, pipes

    def set_rate(self, rate_mbit: float | None) -> None:
        """Let each host send ``rate_mbit`` Mbit/s to the others; None: as fast as the machine
        copies."""
        for host in self._hosts:
            if rate_mbit is None:
                _inside(host, "tc", "qdisc", "replace", "dev", INTERFACE, "root", "pfifo")
                continue
            burst = max(SMALLEST_BURST_BYTES, int(rate_mbit * 1e6 / 8 * BURST_MS / 1e3))
            bucket = (
                "tbf",
                "rate",
                f"{rate_mbit}mbit",
                "burst",
                str(burst),
                "latency",
                f"{QUEUE_MS}ms",
            )
            _inside(host, "tc", "qdisc", "replace", "dev", INTERFACE, "root", *bucket)

    def sent_bytes(self) -> list[int]:
        """Bytes that each host has put on its link so far, headers included, by the interface's own
        counter."""
        links = [
            json.loads(_inside(host, "ip", "-s", "-j", "link", "show", INTERFACE))[0]
            for host in self._hosts
        ]
        return [link["stats64"]["tx"]["bytes"] for link in links]

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """``function(state, *arguments)`` on every rank, ``state`` a dict that the rank keeps;
        results by rank.

        Raises:
            RuntimeError: a rank failed, ended or did not answer; its traceback.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results: list[Any] = [None] * len(self._pipes)
        waiting = dict(zip(self._pipes, range(len(self._pipes)), strict=True))
        deadline = time.monotonic() + LONGEST_CALL_S
        while waiting:
            ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise RuntimeError(
                    f"ranks {sorted(waiting.values())} did not answer in {LONGEST_CALL_S:.0f} s"
                )
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    ok, results[rank] = pipe.recv()
                except (EOFError, ConnectionResetError) as error:
                    raise RuntimeError(f"rank {rank} ended") from error
                if not ok:
                    raise RuntimeError(f"rank {rank}:\n{results[rank]}")
        return results


@contextmanager
def cluster(shape: Shape, threads_per_rank: int = 1) -> Iterator[Cluster]:
    """Hosts and ranks, a gloo process group over them; all is taken down at the end.

    Raises:
        ClusterUnavailableError: no namespaces may be made here, or ``ip`` or ``tc`` is missing.
    """
    os.environ |= SERVER_ENVIRONMENT
    multiprocessing.set_forkserver_preload(PRELOAD)
    context = multiprocessing.get_context("forkserver")
    with ExitStack() as stack:
        hosts = _hosts(shape.hosts, stack)
        pipes = []
        for rank in range(shape.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank_main,
                args=(theirs, rank, shape, hosts[rank // shape.ranks_per_host], threads_per_rank),
            )
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            theirs.close()
            pipes.append(ours)
        running = Cluster(shape, hosts, pipes)
        running.call(_ready)
        yield running


def _hosts(count: int, stack: ExitStack) -> list[int]:
    """Process ids that hold the hosts' namespaces, their links joined by a bridge in one more
    namespace."""
    try:
        switch = _namespace(stack)
        hosts = [_namespace(stack) for _ in range(count)]
        _inside(switch, "ip", "link", "add", "bridge0", "type", "bridge")
        _inside(switch, "ip", "link", "set", "bridge0", "up")
        for index, host in enumerate(hosts):
            port = f"port{index}"
            peer = ("peer", "name", INTERFACE, "netns", str(host))
            _inside(switch, "ip", "link", "add", port, "type", "veth", *peer)
            _inside(switch, "ip", "link", "set", port, "master", "bridge0", "up")
            _inside(host, "ip", "address", "add", f"{_address(index)}/24", "dev", INTERFACE)
            _inside(host, "ip", "link", "set", INTERFACE, "up")
            _inside(host, "ip", "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        said = (
            error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        )
        raise ClusterUnavailableError(
            f"cannot make network namespaces here (root, ip and tc are needed): {said}"
        ) from error
    return hosts


def _address(host: int) -> str:
    return f"{NETWORK}.{host + 1}"


def _namespace(stack: ExitStack) -> int:
    """A new network namespace, held by a process that dies with this one; that process's id."""
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if libc.unshare(CLONE_NEWNET) == 0:
            os.write(writer, STARTED)
            os.close(writer)
            signal.pause()
        os._exit(ctypes.get_errno() or 1)
    os.close(writer)
    stack.callback(os.waitpid, holder, 0)
    stack.callback(os.kill, holder, signal.SIGKILL)
    with os.fdopen(reader, "rb") as started:
        if started.read() != STARTED:
            raise PermissionError("unshare was refused")
    return holder


def _inside(host: int, *command: str) -> str:
    """Run a command in a host's namespace; what it prints."""
    whole = ["nsenter", f"--net=/proc/{host}/ns/net", *command]
    return subprocess.run(whole, check=True, capture_output=True, text=True).stdout


def _rank_main(pipe: Connection, rank: int, shape: Shape, host: int, threads: int) -> None:
    """Enter the host, join the process group, then do what the parent sends until it hangs up."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(f"/proc/{host}/ns/net") as namespace:  # noqa: PTH123 - a descriptor for setns
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    torch.set_num_threads(threads)
    os.environ |= {
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "LOCAL_WORLD_SIZE": str(shape.ranks_per_host),
        "LOCAL_RANK": str(rank % shape.ranks_per_host),
        "RANK": str(rank),
        "WORLD_SIZE": str(shape.world_size),
        "MASTER_ADDR": _address(0),
        "MASTER_PORT": str(PORT),
    }
    state: dict[str, Any] = {}
    try:
        distributed.init_process_group("gloo")
        while True:
            function, arguments = pipe.recv()
            pipe.send((True, function(state, *arguments)))
    except EOFError:
        os._exit(0)
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        sys.stderr.flush()
        os._exit(1)


def _ready(state: dict[str, Any]) -> None:
    """Nothing but the proof that a rank is there."""
