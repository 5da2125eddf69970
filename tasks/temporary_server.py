"""A Prefect server for one run, where none is set; what it has noted stays in PREFECT_HOME, where
``make prefect`` shows it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

HOST = "127.0.0.1"
# As Prefect starts its own; its way would begin only once all is imported, and import the server
# into this process, too
OF_ONE_RUN = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
LONGEST_START_S = 180.0
LONGEST_END_S = 5.0

_urls: set[str] = set()


@contextmanager
def temporary_server() -> Iterator[Callable[[], None]]:
    """Start a server, unless one is set, that ends with the block.

    Yields:
        What waits until the server answers and lets the flows of this process report to it. One
        that does not answer costs a warning (:func:`tasks.calling.run_flow`).
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        yield lambda: None
        return
    with socket.socket() as found:
        found.bind((HOST, 0))
        port = found.getsockname()[1]
    app = ("--factory", "prefect.server.api.server:create_app", "--lifespan", "on")
    where = ("--host", HOST, "--port", str(port), "--log-level", "error")
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *app, *where], env={**os.environ, **OF_ONE_RUN}
    )
    url = f"http://{HOST}:{port}/api"

    def wait() -> None:
        end = time.monotonic() + LONGEST_START_S
        while not _answers(url) and server.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        _urls.add(url)
        os.environ["PREFECT_API_URL"] = url
        refresh_global_settings_context()

    try:
        yield wait
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        server.terminate()
        try:
            server.wait(LONGEST_END_S)
        except subprocess.TimeoutExpired:
            server.kill()


def is_temporary(url: str) -> bool:
    """Whether the server at ``url`` is one of this process, which shows nothing later."""
    return url in _urls


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (URLError, TimeoutError, ConnectionError):
        return False
