"""The stream's settings, its locks, and what it sees of a log."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest
import yaml
from prefect.events.clients import AssertingEventsClient
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.events.schemas.events import ResourceSpecification
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.stream import tell_of_growth
from recsys.config import InputError, load_settings
from recsys.data.schema import Schema, Window
from recsys.data.settings import DataSettings, load_dataset
from recsys.files import BusyError, read_json
from tasks.ingest import ingest_windows, remote_states
from tasks.project import PROJECT_LOCK, only_one
from tasks.stream import log_state, what_is_missing
from tasks.stream_settings import StreamSettings, load_stream_settings
from tests.support.projects import CSV_LOG, CSV_YAML, ROOT, read_csv_files


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose log is one CSV file."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    read_csv_files(tmp_path, tmp_path / "logs")
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(project: Path, key: str, value: str) -> None:
    path = project / "params/stream.yaml"
    lines = [
        f"{key}: {value}" if line.startswith(f"{key}:") else line
        for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines))


def windows(project: Path, count: int) -> None:
    folder = project / "data/windows"
    folder.mkdir(parents=True, exist_ok=True)
    Schema(
        "mine", [], [], ["all"], [Window(f"w{i}", i, i + 1, 1, 0) for i in range(count)], 0.1, {}
    ).save(folder)


def test_schedule_is_prefects_keyword() -> None:
    assert StreamSettings().schedule() == {}
    assert StreamSettings(cron="*/30 * * * *").schedule() == {"cron": "*/30 * * * *"}
    assert StreamSettings(interval_minutes=2).schedule() == {"interval": 120.0}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("cron", "every hour", "key 'cron'"),
        ("poll_seconds", "0", "key 'poll_seconds'"),
        ("windows_at_once", "0", "key 'windows_at_once'"),
        ("alias", "[1]", "key 'alias'"),
    ],
)
def test_a_wrong_setting_is_one_line(project: Path, key: str, value: str, expected: str) -> None:
    change(project, key, value)
    with pytest.raises(InputError, match=expected) as error:
        load_stream_settings()
    assert "\n" not in str(error.value)


def test_two_schedules_are_refused(project: Path) -> None:
    change(project, "cron", '"0 * * * *"')
    change(project, "interval_minutes", "5")
    with pytest.raises(InputError, match="give cron or interval_minutes, not both"):
        load_stream_settings()


def test_a_lock_refuses_a_second_process_in_one_line_and_is_free_after_its_holder_was_killed(
    project: Path,
) -> None:
    holder = (
        "from tasks.project import only_one; "
        "c = only_one('project.lock', 'running augment'); c.__enter__(); "
        "print(1, flush=True); "
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", holder + "input()"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    with (
        pytest.raises(BusyError) as error,
        only_one(PROJECT_LOCK, "running ingest"),
    ):
        pass
    owner = f"another run is running augment (process {process.pid} on {socket.gethostname()}, for "
    assert owner in str(error.value)
    assert "\n" not in str(error.value)
    process.kill()
    process.communicate()
    with only_one(PROJECT_LOCK, "running ingest"):
        pass


def test_a_log_behind_a_url_is_watched_and_ingested_where_it_has_changed(project: Path) -> None:
    store = fsspec.filesystem("memory")
    store.store.clear()
    (project / "params/datasets/mine.yaml").write_text(
        CSV_YAML.replace("log-*.csv", '"memory://bucket/**/*.csv"')
    )
    states = [log_state()]  # a log that is not there yet
    store.pipe("/bucket/day=1/log.csv", CSV_LOG)
    states.append(log_state())
    assert log_state() == states[-1]
    settings = load_settings(project / "params/data.yaml", DataSettings)
    dataset = load_dataset(settings, project / "params/datasets")
    known = remote_states(dataset, settings)
    assert list(known) == ["/bucket/day=1/log.csv"]
    ingest_windows.fn()
    assert read_json(project / "data/windows/remote.json") == known
    store.pipe("/bucket/day=2/log.csv", CSV_LOG)
    states.append(log_state())
    store.pipe("/bucket/day=2/log.csv", CSV_LOG + b"3,1,c\n")
    states.append(log_state())
    assert len({str(state) for state in states}) == len(states)
    assert known.items() < remote_states(dataset, settings).items()
    store.store.clear()


def test_state_changes_with_the_log_its_settings_and_the_windows(project: Path) -> None:
    states = [log_state()]
    log = project / "logs/log-1.csv"
    log.write_text("time,clicked,ad\n1,0,a\n")
    states.append(log_state())
    assert log_state() == states[-1]
    with log.open("a") as file:
        file.write("2,1,b\n")
    states.append(log_state())
    (project / "logs/log-2.csv").write_text("time,clicked,ad\n3,0,a\n")
    states.append(log_state())
    (project / "params/datasets/mine.yaml").write_text(CSV_YAML.replace("100", "200"))
    states.append(log_state())
    windows(project, 2)
    states.append(log_state())
    assert len({str(state) for state in states}) == len(states)
    assert states[-1][0] == states[-2][0]  # the log's own part


def test_it_waits_for_the_windows_that_students_rows_are_chosen_on(project: Path) -> None:
    windows(project, 4)
    assert what_is_missing.fn() == (
        "waits for 4 complete windows (students' rows and rates are chosen on them); there are 3"
    )
    windows(project, 5)
    assert what_is_missing.fn() is None


def test_it_waits_for_the_windows_that_the_teacher_is_learnt_from_then_for_one_that_is_complete(
    project: Path,
) -> None:
    path = project / "params/students.yaml"
    text = path.read_text().replace("rows: auto ", "rows: own ")
    path.write_text(text.replace("table_learning_rate: auto", "table_learning_rate: 0.1"))
    teacher = project / "params/teacher.yaml"
    windows(project, 4)
    assert what_is_missing.fn() == (
        "waits for 4 complete windows (the teacher's rate is chosen on them); there are 3"
    )
    text = teacher.read_text()
    teacher.write_text(text.replace("table_learning_rate: auto", "table_learning_rate: 0.1"))
    windows(project, 3)
    assert what_is_missing.fn() == (
        "waits for 3 complete windows (the teacher's towers are computed from them); there are 2"
    )
    windows(project, 4)
    assert what_is_missing.fn() is None
    (project / "models/partition").mkdir(parents=True)
    (project / "models/partition/partition.json").touch()
    windows(project, 1)
    assert "waits for 1 complete windows" in str(what_is_missing.fn())
    change(project, "finished", "true")
    assert what_is_missing.fn() is None


def test_the_event_of_a_grown_log_is_the_one_that_starts_the_deployment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (trigger,) = [one["triggers"][0] for one in deployments if "triggers" in one]
    awaited = DeploymentEventTrigger.model_validate(trigger)
    worker = EventsWorker.instance(AssertingEventsClient)  # Prefect's own, which keeps what is sent
    monkeypatch.setattr(EventsWorker, "instance", lambda *_: worker)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            tell_of_growth()
        worker.drain()
        server.shutdown()
    (event,) = [event for client in AssertingEventsClient.all for event in client.events]
    assert {event.event} == awaited.expect
    assert ResourceSpecification.model_validate(trigger["match"]).matches(event.resource)


@pytest.mark.parametrize(
    ("server", "expected"),
    [("", "no Prefect server is set"), ("http://127.0.0.1:9/api", "does not answer")],
)
def test_a_watcher_without_a_server_to_tell_ends_with_one_line(server: str, expected: str) -> None:
    with (
        temporary_settings({PREFECT_API_URL: server or None}),
        pytest.raises(InputError, match=expected),
    ):
        tell_of_growth()
