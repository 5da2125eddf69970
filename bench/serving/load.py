"""A server under steady load: errors, delays and memory at 80 % of what it can answer.

python -m bench.serving.load --seconds 300 --report docs/benchmarks/load.md
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from bench.serving.latency import made_export, made_rows
from bench.shared.report import machine_lines, print_table

CONNECTIONS, SHARE, WARM_SECONDS, CAPACITY_SECONDS = 4, 0.8, 5.0, 15.0
BODIES = 4096  # of one row each; 16 categories of 5,000 values
MEBI = 1 << 20
COMMAND = "python -m bench.serving.load --seconds 300"


@dataclass
class Asked:
    """What a connection has seen: seconds from when a request was due to its answer, and how many
    answers were no probability."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0


def request_of(row: dict) -> bytes:
    """A whole HTTP request."""
    body = json.dumps({"rows": [row]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def ask(connection: socket.socket, request: bytes) -> bool:
    """Whether the answer is a probability."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536) or _closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536) or _closed()
    return head.startswith(b"HTTP/1.1 200") and b'"probabilities"' in body


def _closed() -> bytes:
    raise ConnectionError("the server has closed the connection")


def run(
    port: int, requests: list[bytes], seconds: float, per_second: float | None
) -> tuple[list[Asked], float]:
    """Ask over some connections, each as soon as it is answered or at even times of its own; what
    they saw, and how long it took."""
    found = [Asked() for _ in range(CONNECTIONS)]
    began = time.perf_counter()

    def keep_asking(place: int) -> None:
        own, count = found[place], 0
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                now = time.perf_counter()
                due = now
                if per_second is not None:
                    due = began + (count * CONNECTIONS + place) / per_second
                    time.sleep(max(due - now, 0.0))
                if due >= began + seconds:
                    return
                good = ask(connection, requests[(count * CONNECTIONS + place) % len(requests)])
                own.errors += not good
                own.seconds.append(time.perf_counter() - due)
                count += 1

    threads = [threading.Thread(target=keep_asking, args=(place,)) for place in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, time.perf_counter() - began


def sampled(process: psutil.Process, every: float, ended: threading.Event) -> Callable[[], list]:
    """Follow a process: (seconds, MiB resident, threads)."""
    points, began = [], time.perf_counter()

    def look() -> None:
        while not ended.is_set():
            memory = process.memory_info().rss / MEBI
            points.append((time.perf_counter() - began, memory, process.num_threads()))
            ended.wait(every)

    thread = threading.Thread(target=look)
    thread.start()
    return lambda: (ended.set(), thread.join(), points)[2]


def measured(folder: Path, seconds: float) -> list[str]:
    """Lines of the report."""
    requests = [request_of(row) for row in made_rows(BODIES)]
    command = [sys.executable, "-m", "flows.serve", f"{folder}/", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split("on http://")[1].split()[0]
            port = int(address.split(":")[1])
            run(port, requests, WARM_SECONDS, None)
            found, took = run(port, requests, CAPACITY_SECONDS, None)
            capacity = sum(len(one.seconds) for one in found) / took
            finish = sampled(psutil.Process(server.pid), seconds / 20, threading.Event())
            found, took = run(port, requests, seconds, SHARE * capacity)
            points = finish()
        finally:
            server.terminate()
    times = np.concatenate([one.seconds for one in found]) * 1000
    p50, p99, p999 = np.quantile(times, [0.5, 0.99, 0.999])
    after = [point for point in points if point[0] >= seconds / 4]
    return [
        "| what | |",
        "|---|---:|",
        f"| capacity: {CONNECTIONS} connections, each asks once it is answered | "
        f"{capacity:,.0f} requests/s |",
        f"| then for {took:.0f} s at {SHARE:.0%} of it | {len(times) / took:,.0f} requests/s |",
        f"| requests | {len(times):,} |",
        f"| errors | {sum(one.errors for one in found)} |",
        f"| from due to answered, p50 / p99 / p99.9 | {p50:.2f} / {p99:.2f} / {p999:.2f} ms |",
        f"| memory of the server at the start, after a quarter, at the end | {points[0][1]:.1f} / "
        f"{after[0][1]:.1f} / {points[-1][1]:.1f} MiB |",
        f"| threads after a quarter, at the end | {after[0][2]} / {points[-1][2]} |",
        f"| load of the machine at the end | {os.getloadavg()[0]:.1f} |",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--report", type=Path, help="where the Markdown goes, too")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        made_export(folder)
        head = machine_lines("A server under load", COMMAND, {})
        table = measured(folder, options.seconds)
    about = (
        "One row per request, over loopback; the asking process shares the cores with the server."
    )
    print_table(head, [about], table, options.report)


if __name__ == "__main__":
    main()
