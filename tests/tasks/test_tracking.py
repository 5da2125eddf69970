"""One MLflow run a model that grows: gone on with, each value at its window's step, a value sent
twice kept once. A store that fails, or was moved, costs no run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.curves import curves_of
from tasks.spool import waiting
from tasks.tracking import METRICS_PER_REQUEST, RunRecord, connect, record
from tasks.tracking_settings import without_credentials
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
        f"the project was at {old.as_uri()}: MLflow's paths follow it to {new.as_uri()}"
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
    monkeypatch.chdir(made(tmp_path / "a", uri))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    record_file("first", "1")
    shown = caplog.text + "".join(capfd.readouterr())
    assert "MLflow did not take first" in shown and "cret" not in shown


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
