"""Prefect's server of one run."""

import asyncio
import os
import subprocess
import sys
import time
from typing import Any

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from starlette.responses import Response
from starlette.routing import Route

from tasks.temporary_server import OF_VARIABLE, RETRY_SECONDS, app, starting

# A process whose child ends with it
PARENT = """
import os, subprocess, sys
child = "import os; from tasks.temporary_server import end_with; parent = os.getppid(); "
child += "print(1, flush=True); end_with(parent)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


def busy(request: Any) -> Response:
    return Response(status_code=503)


def is_alive(process: psutil.Process) -> bool:
    """A container may have nobody who takes a dead process off the list."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def asked(served: Any, *paths: str) -> list[httpx.Response]:
    transport = httpx.ASGITransport(served)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        return [await client.get(path) for path in paths]


def test_a_client_whose_write_met_another_one_is_asked_to_come_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect's client waits for two seconds otherwise."""
    monkeypatch.setenv(OF_VARIABLE, str(os.getppid()))
    served = app()
    served.router.routes.insert(0, Route("/busy", busy))
    answers = asyncio.run(asked(served, "/busy", "/none"))  # without its database
    assert float(answers[0].headers["Retry-After"]) == RETRY_SECONDS < 1
    assert "Retry-After" not in answers[1].headers


def test_it_ends_with_a_process_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    end = time.monotonic() + 60
    while is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_none_is_started_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), starting():
        pass
