"""One MLflow run a model that grows: gone on with, each value at its window's step, a value sent
twice kept once. Runs go on while their block does, under their parents. A store that fails, hangs
or was moved costs no run, and little time."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recsys.config import InputError, load_settings
from tasks.courier import main as run_courier
from tasks.curves import curves_of
from tasks.live import following
from tasks.spool import waiting
from tasks.tracking import (
    METRICS_PER_REQUEST,
    NOTE_TAG,
    PARENT_TAG,
    RunRecord,
    connect,
    deliver,
    open_run,
    record,
)
from tasks.tracking_settings import URI_VARIABLE, TrackingSettings, without_credentials
from tests.support.mlflow_stores import empty_store


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose MLflow store is a file of its own."""
    return made(tmp_path_factory.mktemp("project"))


def made(folder: Path, uri: str = "sqlite:///mlflow.db", artifacts: str = "artifacts") -> Path:
    (folder / "params").mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(empty_store())
    (folder / "params/tracking.yaml").write_text(
        f"uri: {uri}\nexperiment: test\nartifacts: {artifacts}\n"
    )
    return folder


def grown(name: str, first_step: int, curve: list[float | None], **changes: Any) -> RunRecord:
    values = {
        "parameters": {"world_size": 1},
        "data_version": f"d{first_step}",
        "dataset": "toy",
        **changes,
    }
    return RunRecord(
        name=name,
        kind="stream",
        curves={"window/ne": curve},
        grows=name,
        first_step=first_step,
        **values,
    )


def runs_and_steps(name: str) -> tuple[list[Any], list[tuple[int, float]]]:
    mlflow, experiment_id = connect()
    client = mlflow.MlflowClient()
    runs = client.search_runs([experiment_id], f"tags.grows = '{name}'")
    history = client.get_metric_history(runs[0].info.run_id, "window/ne")
    return runs, sorted((metric.step, metric.value) for metric in history)


def test_a_growing_model_has_one_run_that_later_windows_go_on_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    record(grown("a/teacher", 0, [0.9, None]))
    later = grown("a/teacher", 2, [0.8, 0.7], parameters={"world_size": 2})
    record(later)
    record(later)
    record(grown("b/teacher", 0, [0.5]))
    runs, steps = runs_and_steps("a/teacher")
    assert len(runs) == 1
    assert steps == [(0, 0.9), (2, 0.8), (3, 0.7)]
    assert runs[0].data.tags["data_version"] == "d2"
    assert {one.dataset.digest for one in runs[0].inputs.dataset_inputs} == {"d0", "d2"}
    assert runs[0].info.status == "FINISHED"


def test_more_values_than_mlflow_takes_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    values: list[float | None] = [float(step) for step in range(METRICS_PER_REQUEST + 5)]
    record(grown("long", 0, values))
    assert runs_and_steps("long")[1] == list(enumerate(values))


def test_curves_keep_each_value_at_its_windows_place(tmp_path: Path) -> None:
    common = {"auc": 0.6, "logloss": 0.1, "calibration": None}
    windows = [
        {"ne": None, **common},
        {"ne": 0.9, "clip_rate": 0.1, **common},
        {"ne": 0.8, **common},
    ]
    (tmp_path / "metrics.json").write_text(json.dumps({"windows": windows}))
    curves = curves_of(tmp_path)
    assert curves["window/ne"] == [None, 0.9, 0.8]
    assert curves["window/clip_rate"] == [None, 0.1, None]
    assert "window/calibration" not in curves
    assert curves_of(tmp_path, 2)["window/ne"] == [0.8]


def record_file(name: str, text: str) -> None:
    """Record a run with one artifact, in the project that is the working directory."""
    Path("note.txt").write_text(text)
    record(RunRecord(name, "test", {}, "d0", "toy", artifacts={"note.txt": ""}))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def notes_by_run() -> dict[str, str]:
    mlflow, experiment_id = connect()
    runs = mlflow.MlflowClient().search_runs([experiment_id])
    return {
        run.info.run_name: mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt")
        for run in runs
    }


@pytest.mark.parametrize("artifacts", ["artifacts", "out/of it"])
def test_a_copied_project_leaves_the_old_folder_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    artifacts: str,
) -> None:
    old, new = made(tmp_path / "my project", artifacts=artifacts), tmp_path / "copy"
    monkeypatch.chdir(old)
    record_file("first", "1")
    shutil.copytree(old, new)
    before = files(old)
    monkeypatch.chdir(new)
    record_file("second", "2")
    record_file("third", "3")
    assert files(old) == before
    assert len(list((new / artifacts).rglob("note.txt"))) == 3
    shutil.rmtree(old)
    assert notes_by_run() == {"first": "1", "second": "2", "third": "3"}
    assert [one.getMessage() for one in caplog.records if one.name == "tasks.tracking"] == [
        f"the project was at {old.as_uri()}: MLflow's paths now point to {new.as_uri()}"
    ]


def test_paths_of_a_store_that_projects_share_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    (tmp_path / "shared.db").write_bytes(empty_store())
    for name in ("a", "b", "a"):
        folder = tmp_path / name
        monkeypatch.chdir(folder if folder.is_dir() else made(folder, uri))
        record_file(name, name)
    assert len(list((tmp_path / "a/artifacts").rglob("note.txt"))) == 3


def test_another_folder_of_artifacts_is_for_a_new_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made(tmp_path / "a"))
    record_file("first", "1")
    path = Path("params/tracking.yaml")
    path.write_text(path.read_text().replace("artifacts: artifacts", "artifacts: other"))
    record_file("second", "2")
    assert notes_by_run() == {"first": "1", "second": "2"}


def test_runs_of_a_deleted_experiment_wait_until_it_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(made(tmp_path / "a"))
    mlflow, experiment_id = connect()
    mlflow.MlflowClient().delete_experiment(experiment_id)
    record_file("first", "1")
    warning = caplog.records[-1].getMessage()
    assert f"mlflow experiments restore -x {experiment_id}" in warning and "\n" not in warning
    assert len(waiting()) == 1
    mlflow.MlflowClient().restore_experiment(experiment_id)
    record_file("second", "1")
    assert notes_by_run() == {"first": "1", "second": "1"}
    assert not waiting()


def named(name: str, **content: Any) -> RunRecord:
    return RunRecord(name, "test", {"rate": 0.1}, "d0", "toy", **content)


def runs() -> dict[str, Any]:
    """MLflow's runs by name."""
    mlflow, experiment_id = connect()
    return {run.info.run_name: run for run in mlflow.MlflowClient().search_runs([experiment_id])}


@contextmanager
def nobody_answers() -> Iterator[str]:
    """The URI of a server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def nobody_there() -> Iterator[str]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.mark.parametrize("server", [nobody_there, nobody_answers])
def test_a_server_that_is_away_or_hangs_costs_seconds_and_its_runs_go_later_as_they_were(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with server() as uri:
        monkeypatch.chdir(made(tmp_path / "project", uri))
        settings = Path("params/tracking.yaml")
        settings.write_text(settings.read_text() + "wait_seconds: 1\n")
        before, begun = time.time(), time.monotonic()
        record_file("first", "old")
        assert time.monotonic() - begun < 20  # of a machine that is busy; MLflow alone: minutes
        after = time.time()
    assert "MLflow did not take first" in caplog.text
    record_of_later = Path("note.txt")
    record_of_later.write_text("new")
    settings.write_text(settings.read_text().replace(uri, "sqlite:///mlflow.db"))
    assert deliver() == ""
    assert notes_by_run() == {"first": "old"}
    info = runs()["first"].info
    assert 1000 * before - 1 <= info.start_time <= info.end_time <= 1000 * after


LOCKED = """
import sqlite3
store = sqlite3.connect("mlflow.db", isolation_level=None)
store.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
input()  # until it is killed
"""


def test_a_store_that_another_process_has_locked_costs_seconds_and_its_runs_go_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(made(tmp_path / "project"))
    settings = Path("params/tracking.yaml")
    settings.write_text(settings.read_text() + "wait_seconds: 1\n")
    record_file("before", "0")
    command = [sys.executable, "-c", LOCKED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        begun = time.monotonic()
        record_file("first", "1")
        assert time.monotonic() - begun < 15  # of a machine that is busy; MLflow alone: 20 s
        other.kill()
    (warning,) = [one.getMessage() for one in caplog.records if "did not take" in one.getMessage()]
    assert "(mlflow.db is locked by another process)" in warning and "\n" not in warning
    assert len(waiting()) == 1
    record_file("second", "2")
    assert notes_by_run() == {"before": "0", "first": "1", "second": "2"}
    assert not waiting()


def test_a_run_goes_on_while_its_block_does_and_holds_those_recorded_in_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with open_run(named("outer", description="**Why.**")) as outer:
        with open_run(named("inner", tags={"colour": "red"})) as inner:
            assert runs()["inner"].info.status == "RUNNING"
            record(named("leaf"))
            inner.metrics = {"ne": 0.5}
        record(named("beside"))
        outer.tags = {"late": "yes"}
    found = runs()
    parents = {name: found[name].data.tags.get(PARENT_TAG) for name in found}
    ids = {name: run.info.run_id for name, run in found.items()}
    assert parents["inner"] == parents["beside"] == ids["outer"]
    assert parents["leaf"] == ids["inner"]
    assert {found[name].info.status for name in ("outer", "inner", "leaf")} == {"FINISHED"}
    assert found["inner"].data.metrics == {"ne": 0.5}
    assert found["inner"].data.params == {"rate": "0.1"}
    assert found["outer"].data.tags["late"] == "yes"
    assert found["outer"].data.tags[NOTE_TAG] == "**Why.**"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_block_that_ends_with_an_error_leaves_no_run_that_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], status: str
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(error), open_run(named(f"fails by {error.__name__}")):
        raise error
    assert runs()[f"fails by {error.__name__}"].info.status == status


KILLED_AT_WORK = """
import os, signal
from tasks.tracking import RunRecord, by_courier, open_run
with by_courier(), open_run(RunRecord("killed at work", "test", {}, "d0", "toy")):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_run_of_a_killed_process_is_ended_by_the_courier(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    process = subprocess.Popen([sys.executable, "-c", KILLED_AT_WORK])
    process.wait()
    run_courier(process.pid, time.time())
    assert runs()["killed at work"].info.status == "KILLED"


def test_what_mlflow_refuses_does_not_hold_up_what_comes_after_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(project)
    record(named("refused", metrics={"long " * 100: 1.0}))
    record(named("taken", metrics={"ne [%]": 1.0}))
    found = runs()
    assert found["taken"].data.metrics == {"ne ___": 1.0}
    assert found["refused"].info.status == "FAILED"
    (warning,) = [one.getMessage() for one in caplog.records if "is refused" in one.getMessage()]
    assert "250 characters" in warning


def line(step: int, time_ms: int, **values: float) -> str:
    return json.dumps({"time_ms": time_ms, "step": step, "values": values}) + "\n"


def test_a_model_that_trains_is_a_run_with_each_windows_metrics_at_their_time(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    began = 1_700_000_000_000
    with following("models", lambda name: named(f"model {name}")) as follower:
        path = follower.folder / "feed/plain.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(line(0, began, ne=0.9) + line(0, began + 500, ne=0.9, speed=7.0) + '{"ti')
        follower.look()
        run = runs()["model feed/plain"]
        assert run.info.status == "RUNNING"
        assert run.info.start_time == began
        assert run.data.metrics == {"window/ne": 0.9, "window/speed": 7.0}
        path.write_text(path.read_text()[: -len('{"ti')] + line(1, began + 900, ne=0.8))
        follower.finish("feed/plain", {"window/ne": [0.9, 0.8, 0.7]}, tags={"rows": "own"})
    mlflow, _ = connect()
    run = runs()["model feed/plain"]
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "window/ne")
    assert [(one.step, one.value) for one in history] == [(0, 0.9), (1, 0.8), (2, 0.7)]
    assert [one.timestamp for one in history][:2] == [began, began + 900]
    assert run.info.status == "FINISHED"
    assert run.data.tags["rows"] == "own"


def test_a_model_whose_training_fails_is_a_failed_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with (
        pytest.raises(RuntimeError),
        following("models", lambda name: named(f"fails, {name}")) as follower,
    ):
        (follower.folder / "a.jsonl").write_text(line(0, 1_700_000_000_000, ne=0.9))
        follower.look()
        raise RuntimeError
    assert runs()["fails, a"].info.status == "FAILED"


def test_the_environment_names_the_store_where_the_settings_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.db").write_bytes(empty_store())
    monkeypatch.chdir(made(tmp_path / "a", uri="null"))
    monkeypatch.setenv(URI_VARIABLE, f"sqlite:///{tmp_path / 'other.db'}")
    record(named("elsewhere"))
    monkeypatch.delenv(URI_VARIABLE)
    record(named("here"))
    assert set(runs()) == {"here"}
    assert TrackingSettings(uri="http://host:5000").store == "http://host:5000"


@pytest.mark.parametrize(
    "uri", ["http://me:se%2Fcret@127.0.0.1:9", "postgresql://me:se%2Fcret@127.0.0.1:9/db"]
)
def test_a_password_is_never_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    uri: str,
) -> None:
    monkeypatch.chdir(made(tmp_path / "a", "null"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    record_file("first", "1")
    shown = caplog.text + "".join(capfd.readouterr())
    assert "MLflow did not take first" in shown and "cret" not in shown


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:cret@host",
        "http://cret@host",
        "postgresql://me:cret@host/db",
        "postgresql://host/db?user=me&password=cret",
    ],
)
def test_credentials_in_the_settings_are_refused_unseen(tmp_path: Path, uri: str) -> None:
    """Git keeps params/, and DVC writes the settings into dvc.lock."""
    path = made(tmp_path / "a", uri) / "params/tracking.yaml"
    with pytest.raises(InputError, match="'uri': contains credentials, which Git") as error:
        load_settings(path, TrackingSettings)
    assert "cret@" not in str(error.value) and "=cret" not in str(error.value)
    assert TrackingSettings(uri="postgresql://me@host/db").uri


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("request to https://me:a@b@host:5/x failed", "request to https://***@host:5/x failed"),
        (
            "postgresql://host/db?user=me&password=p;x&a=1",
            "postgresql://host/db?user=me&password=***&a=1",
        ),
        ("http://token@host", "http://***@host"),
        ("http://host:5000/a@b and me@mail", "http://host:5000/a@b and me@mail"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_credentials_are_masked(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
