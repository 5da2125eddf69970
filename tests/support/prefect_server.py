"""A Prefect server that the projects of this process share: to start one each takes ten seconds."""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from urllib.error import URLError
from urllib.request import urlopen

from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.support.ports import free_port

WAIT_SECONDS = 120


@cache
def api_url() -> str:
    """The server's PREFECT_API_URL; it is started by the first call and ends with this process."""
    return start()[0]


def start(automations: bool = False) -> tuple[str, Callable[[], None]]:
    """The PREFECT_API_URL of a new server, and what kills it; it ends with this process at the
    latest.

    Args:
        automations: with the services that watch for events and schedule runs.
    """
    port = free_port()
    home = tempfile.TemporaryDirectory(prefix="prefect-")
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    process = subprocess.Popen(
        command if automations else [*command, "--no-services"],
        env={**os.environ, "PREFECT_HOME": home.name, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def kill() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            home.cleanup()

    atexit.register(kill)
    url = f"http://127.0.0.1:{port}/api"
    end = time.monotonic() + WAIT_SECONDS
    while not _answers(url):
        assert process.poll() is None, "Prefect's server ended"
        assert time.monotonic() < end, "Prefect's server does not answer"
        time.sleep(0.2)
    return url, kill


@contextmanager
def shared_server() -> Iterator[None]:
    """Flows that are called in this process use the server."""
    with temporary_settings({PREFECT_API_URL: api_url()}):
        yield


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (URLError, TimeoutError, ConnectionError):
        return False
