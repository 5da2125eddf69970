"""A cluster of network namespaces: its links carry what crosses hosts, at the rate they are given,
and vanish."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from bench.towers.cluster import Shape, cluster

REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAMS = ("ip", "tc", "nsenter", "unshare")
MIB = 2**20
MBIT_PER_MIB = 8 * MIB / 1e6
HEADERS = 1.1  # frames over payload, and the barrier


def exchange(state: dict[str, Any], mib: int) -> float:
    """Seconds of one all-to-all of ``mib`` MiB a rank."""
    sent = torch.ones(mib * MIB // 4)
    distributed.barrier()
    started = time.perf_counter()
    distributed.all_to_all_single(torch.empty_like(sent), sent)
    distributed.barrier()
    return time.perf_counter() - started


def remember(state: dict[str, Any], value: int) -> int:
    """The sum of all values that this rank was given."""
    state["sum"] = state.get("sum", 0) + value
    return state["sum"]


def fail(state: dict[str, Any]) -> None:
    """An error on rank 1."""
    if distributed.get_rank() == 1:
        raise ValueError("no luck")


@pytest.fixture
def needs_namespaces() -> None:
    """Skip where a program is missing or the kernel makes no network namespaces for this user."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    refused = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, text=True, check=False
    )
    if refused.returncode:
        pytest.skip(f"network namespaces need root: {refused.stderr.strip()}")


def test_links_carry_what_crosses_hosts_at_their_rate(needs_namespaces: None) -> None:
    with cluster(Shape(hosts=2, ranks_per_host=2)) as hosts:
        hosts.call(exchange, 1)
        hosts.set_rate(200)
        before = hosts.sent_bytes()
        seconds = max(hosts.call(exchange, 4))
        crossed = [
            (after - start) / MIB for after, start in zip(hosts.sent_bytes(), before, strict=True)
        ]
        assert hosts.call(remember, 2) == [2] * 4
        assert hosts.call(remember, 3) == [5] * 4
        with pytest.raises(RuntimeError, match=r"rank 1:\n(.|\n)*no luck"):
            hosts.call(fail)
    assert all(4.0 <= mib <= 4.0 * HEADERS for mib in crossed)  # half of 2 ranks' 4 MiB each
    assert seconds >= 0.8 * 4.0 * MBIT_PER_MIB / 200  # the bucket may start full


def test_nothing_is_left_when_the_benchmark_is_killed(
    needs_namespaces: None, tmp_path: Path
) -> None:
    code = (
        "import pathlib, time\nfrom bench.towers.cluster import Shape, cluster\n"
        "if __name__ == '__main__':\n    with cluster(Shape(2, 1)) as hosts:\n"
        f"        pathlib.Path({str(tmp_path / 'up')!r}).write_text(' '.join(map(str, "
        f"hosts._hosts)))\n"
        "        time.sleep(60)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "up").exists() or not (tmp_path / "up").read_text():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    holders = [int(pid) for pid in (tmp_path / "up").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in holders):
        assert time.monotonic() < deadline, "a namespace outlived the benchmark"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    """Whether a process still runs; one that waits to be reaped holds no namespace."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
