"""Servers that some stores need, on the loopback: PostgreSQL, and one that speaks S3."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.support.ports import free_port

WAIT_SECONDS = 120
S3_CREDENTIALS = {"aws_access_key_id": "towerflow", "aws_secret_access_key": "none"}
POSTGRES_DIRS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PASSWORD = "s3cret-word"


def has_postgresql() -> bool:
    """Whether Debian's package postgresql is installed."""
    return bool(POSTGRES_DIRS) or shutil.which("postgres") is not None


@contextmanager
def postgresql() -> Iterator[str]:
    """A server with an empty database; its URI, with user and password."""
    tools = POSTGRES_DIRS[-1] if POSTGRES_DIRS else Path(str(shutil.which("postgres"))).parent
    port = free_port()
    with TemporaryDirectory(prefix="postgresql-") as scratch:
        home, owner = Path(scratch), None
        if os.getuid() == 0:  # which PostgreSQL refuses
            owner = pwd.getpwnam("postgres" if "postgres" in _users() else "nobody")
            os.chown(home, owner.pw_uid, owner.pw_gid)
        user = None if owner is None else owner.pw_uid
        (home / "password").write_text(PASSWORD)
        (home / "password").chmod(0o644)
        made = [tools / "initdb", "-D", home / "data", "-U", "ml", "-A", "scram-sha-256", "-N"]
        subprocess.run(
            [*made, f"--pwfile={home / 'password'}"],
            user=user,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=home,
        )
        options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        server = subprocess.Popen(
            [tools / "postgres", "-D", home / "data", "-k", home, *options],
            user=user,
            stderr=subprocess.DEVNULL,
            cwd=home,
        )
        try:
            _wait(lambda: _takes_connections(tools, port), server)
            yield f"postgresql://ml:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # it ends its connections, too
            server.wait()


@contextmanager
def s3() -> Iterator[str]:
    """A store of buckets; its endpoint."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(lambda: _answers(url), server)
            yield url
        finally:
            server.kill()


def _users() -> set[str]:
    return {entry.pw_name for entry in pwd.getpwall()}


def _takes_connections(tools: Path, port: int) -> bool:
    asked = [tools / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(asked, check=False).returncode == 0


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except HTTPError:
        return True
    except (URLError, TimeoutError, ConnectionError):
        return False


def _wait(answers: Callable[[], bool], server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not answers():
        assert server.poll() is None, f"{server.args} ended"
        assert time.monotonic() < end, f"{server.args} does not answer"
        time.sleep(0.1)
