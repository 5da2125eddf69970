"""Prefect's own way from a file to a run: ``towerflow stream --tell`` sends an event, the server's
automation schedules a run of the deployment, and a worker does it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.support import prefect_server
from tests.support.projects import CSV_LOG, copy_project, read_csv_files

pytestmark = pytest.mark.slow
WAIT_SECONDS = 180


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project whose log is one CSV file."""
    (tmp_path / "project").mkdir()
    folder = copy_project(tmp_path / "project")
    read_csv_files(folder, "logs")
    (folder / "logs").mkdir()
    (folder / "logs/log-1.csv").write_bytes(CSV_LOG)
    return folder


@contextmanager
def started(folder: Path, environment: dict[str, str], *words: str) -> Iterator[None]:
    """A command that goes on until the block ends."""
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finished_run() -> FlowRun:
    """The stream's flow run, once it has ended."""
    end = time.monotonic() + WAIT_SECONDS
    of_stream = DeploymentFilter(tags=DeploymentFilterTags(all_=["stream"]))
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while time.monotonic() < end:
            found = client.read_flow_runs(deployment_filter=of_stream)
            if found and found[0].state is not None and found[0].state.is_final():
                return found[0]
            time.sleep(0.5)
    pytest.fail(f"no run of the stream has ended: {found}")


def test_a_file_that_arrives_is_an_event_that_runs_the_stream_on_a_worker(project: Path) -> None:
    url, kill = prefect_server.start(automations=True)
    environment = os.environ | {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(project / ".prefect"),
        "PYTHONPATH": str(project),
    }
    try:
        for words in ("work-pool create local --type process", "--no-prompt deploy --all"):
            command = [sys.executable, "-m", "prefect", *words.split()]
            subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
        worker = started(project, environment, "prefect", "worker", "start", "--pool", "local")
        watcher = started(project, environment, "flows.stream", "--tell")
        with temporary_settings({PREFECT_API_URL: url}), worker, watcher:
            run = finished_run()
    finally:
        kill()
    said = (project / "output.txt").read_text()
    assert run.state is not None and run.state.is_completed(), said
    assert run.created_by is not None and run.created_by.type == "AUTOMATION"
    assert "stream: waits for" in said  # one window of the log is not yet complete
    assert (project / "data/windows/schema.json").is_file()
