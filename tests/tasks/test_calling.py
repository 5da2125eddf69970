"""What Prefect adds to a call: retries where they can help, a limit of time, word of a failure; and
its server away in mid-run: the work goes on and is done once, and what the server has missed is
reported when it is back, or said at the end."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.projects import ROOT

pytestmark = pytest.mark.ranks  # starts a server

# The stages of `outer` in turn: all is well; the server goes away in the second one's task, so that
# the third begins without it; then it is back, or, the second time, stays away.
SCRIPT = """
import json, socket, sys, threading, time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

from prefect import flow, task
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows.command_line import hide_tracebacks_of_mistakes
from recsys.config import InputError
from tasks.calling import call, report_late, run_flow
from recsys.files import BusyError
from tasks.shown import is_busy, tell_of_failure
from tests.support import prefect_server

hide_tracebacks_of_mistakes()
url, kill = prefect_server.start()
target = (urlsplit(url).hostname, urlsplit(url).port)


class Line:
    \"\"\"The way to the server, which can be cut; nobody answers at its end then.\"\"\"

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.join()

    def join(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.ends = []
        threading.Thread(target=self.serve, args=(self.listener,), daemon=True).start()

    def serve(self, listener):
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(target)
                self.ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self.copy, args=(one, other), daemon=True).start()

    def copy(self, one, other):
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def cut(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


line, done, beats = Line(), [], []
events = {"nothing": lambda: None, "cut": line.cut, "join": line.join}
events["kill"] = lambda: (kill(), line.cut())


@task(tags=["training"])
def work(name, before):
    events[before]()
    done.append(name)
    if name.startswith("bad"):
        raise InputError("a mistake")


def note_beat():
    beats.append(get_current_settings().flows.heartbeat_frequency)


@flow
def stage(name, before):
    note_beat()
    call(work, name, before)
    return name


@flow
def outer(prefix, away, back):
    note_beat()
    results = [run_flow(stage, f"{prefix}1", "nothing"), run_flow(stage, f"{prefix}2", away)]
    results.append(run_flow(stage, f"{prefix}3", "nothing"))
    events[back]()
    report_late()
    return results


tries = []


@task(retry_condition_fn=is_busy)
def in_the_way(error, times):
    tries.append(error)
    if len(tries) <= times:
        raise {"InputError": InputError, "BusyError": BusyError}[error]("in the way")


@flow(on_failure=[tell_of_failure])
def failing():
    call(in_the_way, "InputError", 9)


@flow
def busy():
    call(in_the_way, "BusyError", 2)


@task
def slow():
    time.sleep(60)


@flow
def slow_flow():
    call(slow)


told = []


class Listener(BaseHTTPRequestHandler):
    def do_POST(self):
        told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


listener = HTTPServer(("127.0.0.1", 0), Listener)
threading.Thread(target=listener.serve_forever, daemon=True).start()


def set_prefect(**settings):
    open("params/prefect.yaml", "w").write(json.dumps({"retry_seconds": 0.1} | settings))


def mistake_of(called):
    try:
        run_flow(called)
    except InputError as error:
        return str(error)


found = {}
set_prefect()
with temporary_settings({PREFECT_API_URL: url}):
    run_flow(busy)
    found["tries"], tries[:] = tries[:], []
    hook = f"http://127.0.0.1:{listener.server_port}"
    data = {"title": "{{subject}}", "text": "{{body}}"}
    CustomWebhookNotificationBlock(name="x", url=hook, json_data=data).save("ops")
    set_prefect(failure_block="custom-webhook/ops")
    found["failing"] = mistake_of(failing)
    found["told"], found["tries of a mistake"] = told[:], tries[:]
    set_prefect(failure_block="custom-webhook/none")
    mistake_of(failing)
    set_prefect(timeout_hours=0.0001)
    found["slow"] = mistake_of(slow_flow)
    set_prefect()
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs():
            client.delete_flow_run(run.id)
with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{line.port}/api"}):
    found["back"] = run_flow(outer, "a", "cut", "join")
    found["beats"] = beats[:4]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
    found["states"] = sorted([run.state.name, "reported late" in run.tags] for run in runs)
    found["away"] = run_flow(outer, "b", "kill", "nothing")
    try:
        run_flow(stage, "bad", "nothing")
    except InputError as error:
        found["mistake"] = str(error)
found["done"] = done
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "params").mkdir()
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_CLIENT_MAX_RETRIES": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def found(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_task_is_tried_again_where_another_process_is_in_the_way_and_never_for_a_mistake(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert found(result)["tries"] == ["BusyError"] * 3
    assert found(result)["tries of a mistake"] == ["InputError"]


def test_a_block_is_told_of_a_failure_and_one_that_is_not_there_costs_a_line(
    result: subprocess.CompletedProcess[str],
) -> None:
    [told] = found(result)["told"]
    assert told["title"] == "failing has failed"
    assert "in the way" in told["text"]
    assert "/runs/flow-run/" in told["text"]
    assert found(result)["failing"] == "in the way"
    assert "'failure_block': custom-webhook/none was not told" in result.stderr


def test_a_task_that_takes_too_long_is_stopped_in_one_line(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert found(result)["slow"] == (
        "params/prefect.yaml: key 'timeout_hours': slow took longer than 0.0001 hours and was "
        "stopped; the next run resumes there"
    )


def test_the_outermost_flow_alone_sends_heartbeats(
    result: subprocess.CompletedProcess[str],
) -> None:
    """At the end of each that does, Prefect waits for up to a second."""
    outer, *inner = found(result)["beats"]
    assert outer > 0
    assert inner == [None, None, None]


def test_all_work_is_done_once_whenever_the_server_goes(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert found(result)["done"] == ["a1", "a2", "a3", "b1", "b2", "b3", "bad"]
    assert found(result)["back"] == ["a1", "a2", "a3"]
    assert found(result)["away"] == ["b1", "b2", "b3"]


def test_a_server_that_is_back_is_told_what_it_has_missed(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert found(result)["states"] == [["Completed", False]] * 3 + [["Completed", True]]
    assert "server is back; reported late: stage, stage" in result.stderr


def test_a_server_that_was_killed_is_said_in_lines_without_a_traceback(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert "does not answer; outer continues without it" in result.stderr
    assert "does not show the end of: stage, stage, outer (does not answer)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_mistake_stays_what_it_is_without_a_server(
    result: subprocess.CompletedProcess[str],
) -> None:
    assert found(result)["mistake"] == "a mistake"
