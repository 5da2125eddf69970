"""Prefect's server of one run, where none is set.

Prefect would start it when the first flow is called, and wait. Here it starts while the run still
imports what it needs, and asks a client whose write met another one to come again soon.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
from prefect.settings import (
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
)

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

HOST, FACTORY = "127.0.0.1", f"{__name__}:app"
OF_VARIABLE = "TOWERFLOW_SERVER_OF"  # the process that a server ends with
LOOK_SECONDS, RETRY_SECONDS, ALONE_SECONDS = 0.1, 0.1, 1.0


@contextmanager
def starting() -> Iterator[None]:
    """Where no server is set, start one beside the block, and wait for it at the block's end. It
    ends with this process, or with an error in the block."""
    if get_current_settings().api.url or not PREFECT_SERVER_EPHEMERAL_ENABLED:
        yield
        return
    port = _free_port()
    options = ["--host", HOST, "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--factory", FACTORY, *options],
        env={
            **os.environ,
            **get_current_settings().to_environment_variables(exclude_unset=True),
            "PREFECT_UI_ENABLED": "0",
            OF_VARIABLE: str(os.getpid()),
        },
    )
    try:
        yield
    except BaseException:
        process.terminate()  # it ends once its database is whole
        raise
    _hand_over(process, port)


def _hand_over(process: subprocess.Popen[bytes], port: int) -> None:
    """Let Prefect take the process for the server that it would start itself.

    One that ends, or does not answer in time, is left to Prefect: it tries another one.
    """
    from prefect.server.api.server import SubprocessASGIServer  # 1.3 s, while the server starts

    if not _answers(process, f"http://{HOST}:{port}/api/health"):
        process.terminate()
        return
    server = SubprocessASGIServer()  # Prefect's only one
    server.port, server.server_process, server.running = port, process, True
    atexit.register(server.stop)


def _answers(process: subprocess.Popen[bytes], address: str) -> bool:
    end = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    with httpx.Client() as client:
        while process.poll() is None and time.monotonic() < end:
            try:
                if client.get(address).is_success:
                    return True
            except httpx.HTTPError:
                pass
            time.sleep(LOOK_SECONDS)
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def end_with(parent: int) -> None:
    """End this process once its ``parent`` has, however that was."""
    while os.getppid() == parent:
        time.sleep(ALONE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def app() -> "FastAPI":
    """What uvicorn serves, in the server's process."""
    from prefect.server.api.server import create_app

    threading.Thread(target=end_with, args=(int(os.environ[OF_VARIABLE]),), daemon=True).start()
    served = create_app(ephemeral=True, final=True)

    @served.middleware("http")
    async def ask_again_soon(request: "Request", call_next: Any) -> "Response":
        """SQLite refuses a transaction that has read before another one wrote. Without this header
        Prefect's client waits for two seconds, in seven of eight flow runs inside another."""
        response = await call_next(request)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            response.headers.setdefault("Retry-After", str(RETRY_SECONDS))
        return response

    return served
