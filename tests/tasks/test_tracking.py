"""One MLflow run a model that grows: gone on with, each value at its window's step, a value sent
twice kept once."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.curves import curves_of
from tasks.tracking import METRICS_PER_REQUEST, RunRecord, connect, record


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose MLflow store is a file of its own."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "params").mkdir()
    (folder / "params/tracking.yaml").write_text(
        "uri: sqlite:///mlflow.db\nexperiment: test\nartifacts: artifacts\n"
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
