"""Registered models ask for what they read, take pandas' own types, and say what they are; models
that MLflow does not take stay."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from recsys.config import InputError
from recsys.data.schema import CategoricalFeature, Schema, Window
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.serving.export import export_ranker
from recsys.serving.predictor import Predictor
from tasks.comparing import compare_named
from tasks.registry import Served, register_models, register_students
from tasks.tracking import connect
from tests.support.mlflow_stores import empty_store
from tests.support.projects import ROOT

ROWS = 40
SCHEMA = Schema(
    "toy",
    ["price", "shown"],
    [CategoricalFeature("user", 30), CategoricalFeature("history", 20, "list")],
    ["feed", "video"],
    [Window("w0", 0, 10, ROWS, 0)],
    0.3,
    {},
)
WHY = "plain has NE 0.9541, 1.2 % below logistic (own rows)"
EXPORT = Path("models/students/feed/plain/export")


def fill(folder: Path) -> None:
    """A project with data, one student and a report on it, and MLflow's store."""
    folder.mkdir(exist_ok=True)
    for name in ("recsys", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("params", "data/windows/w0", "reports/evaluation"):
        (folder / name).mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(empty_store())
    (folder / "params/tracking.yaml").write_text(
        "uri: sqlite:///mlflow.db\nexperiment: test\nartifacts: artifacts\n"
    )
    draw = np.random.default_rng(5)
    lists = [draw.integers(20, size=draw.integers(4)).tolist() for _ in range(ROWS)]
    rows = pl.DataFrame(
        {
            "example_id": np.arange(ROWS),
            "event_time": np.arange(ROWS),
            "label_time": np.arange(ROWS),
            "group": np.arange(ROWS),
            "domain": np.arange(ROWS) % 2,
            "label": np.zeros(ROWS, dtype=np.int8),
            "price": pl.Series([None, *draw.normal(size=ROWS - 1)], dtype=pl.Float32),
            "shown": pl.Series(draw.integers(9, size=ROWS), dtype=pl.Float32),
            "user": draw.integers(30, size=ROWS),
            "history": pl.Series(lists, dtype=pl.List(pl.Int64)),
        }
    )
    rows.write_parquet(folder / "data/windows/w0/part-00000.parquet")
    SCHEMA.save(folder / "data/windows")
    export(folder / EXPORT, "feed")
    verdict = {"arm": "plain", "ne": 0.9541, "passes": True, "why": WHY}
    report = json.dumps({"verdicts": {"feed": verdict}})
    (folder / "reports/evaluation/report.json").write_text(report)


def export(folder: Path, domain: str | None, schema: Schema = SCHEMA) -> None:
    settings = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.normal(0, 0.5, value.shape, generator=generator)
        for name, value in build_ranker(schema, settings, None, 7).state_dict().items()
    }
    export_ranker(state, schema, settings, folder, domain=domain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose student is registered."""
    folder = tmp_path_factory.mktemp("project")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        register_students.fn()
    return folder


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def rows(project: Path) -> pd.DataFrame:
    """Feed's rows as ingest writes them."""
    frame = pl.read_parquet(project / "data/windows/w0/part-00000.parquet")
    return frame.filter(pl.col("domain") == 0).to_pandas()


def served(alias: str = "champion", name: str = "towerflow-feed") -> Any:
    mlflow, _ = connect()
    return mlflow.pyfunc.load_model(f"models:/{name}@{alias}")


def test_a_registered_model_asks_for_the_features_alone(project: Path, rows: pd.DataFrame) -> None:
    model = served()
    features = ["price", "shown", "user", "history"]
    columns = {one["name"]: one["required"] for one in model.metadata.signature.inputs.to_dict()}
    assert columns == {"domain": False, "price": True, "shown": True, "user": True} | {
        "history": False
    }
    assert list(model.input_example.columns) == features
    expected = Predictor.load(EXPORT).predict(rows)
    np.testing.assert_array_equal(model.predict(rows[features]), expected)
    np.testing.assert_array_equal(model.predict(rows), expected)


def test_a_registered_model_takes_pandas_own_types(project: Path, rows: pd.DataFrame) -> None:
    expected = Predictor.load(EXPORT).predict(rows)
    features = ["price", "shown", "user", "history"]
    table = pd.DataFrame({name: rows[name].tolist() for name in features})  # as one would write it
    table["price"] = table["price"].astype("float64")
    table["shown"] = table["shown"].astype("int64")
    table["history"] = [list(map(int, one)) or None for one in table["history"]]
    np.testing.assert_array_equal(served().predict(table), expected)
    small = table.astype({"shown": "int32", "user": "int32"})
    np.testing.assert_array_equal(served().predict(small), expected)


def test_rows_of_another_domain_are_refused(project: Path, rows: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"such as 1 \(video\); this model serves 0 \(feed\)"):
        served().predict(rows.assign(domain=1))


def test_a_version_says_what_it_is(project: Path) -> None:
    mlflow, _ = connect()
    version = mlflow.MlflowClient().get_model_version_by_alias("towerflow-feed", "champion")
    assert (
        version.description
        == f"Student feed, serves feed, arm plain; registered as champion: {WHY}."
    )
    assert version.tags == {
        "student": "feed",
        "domain": "feed",
        "arm": "plain",
        "data_version": "uncommitted",
        "code_version": "no-git",
    }
    registration = json.loads((project / "reports/registration.json").read_text())
    assert registration["feed"]["alias"] == "champion" and registration["feed"]["why"] == WHY


def test_a_model_of_several_domains_and_tasks(project: Path, rows: pd.DataFrame) -> None:
    schema = replace(SCHEMA, tasks=["click", "sale"], further_base_rates=[0.1])
    export(Path("both"), None, schema)
    register_models({"both": Served("plain", Path("both"), "stream", "it is the only one")})
    model, columns = (
        served("stream", "towerflow-both"),
        ["domain", *SCHEMA.dense, "user", "history"],
    )
    assert list(model.input_example.columns) == columns
    expected = Predictor.load(Path("both")).predict_tasks(rows.assign(domain=1))
    found = model.predict(rows.assign(domain=1)[columns])
    for task in schema.tasks:
        np.testing.assert_array_equal(found[task], expected[task])


def test_a_moved_project_serves_its_models(
    rows: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    expected = Predictor.load(EXPORT).predict(rows)
    register_students.fn()
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path / "after")
    np.testing.assert_array_equal(served().predict(rows), expected)
    register_students.fn()
    mlflow, _ = connect()
    version = mlflow.MlflowClient().get_model_version_by_alias("towerflow-feed", "champion")
    assert version.version in (2, "2")
    np.testing.assert_array_equal(served().predict(rows), expected)
    assert not (tmp_path / "before").exists()


def test_a_deleted_experiment_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    mlflow, experiment_id = connect()
    mlflow.MlflowClient().delete_experiment(experiment_id)
    register_students.fn()
    warnings = [one.getMessage() for one in caplog.records if one.name == "tasks.registry"]
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert (
        f"stay in {EXPORT}: the experiment 'test' of sqlite:///mlflow.db was deleted"
        in (warnings[0])
    )
    assert f"mlflow experiments restore -x {experiment_id}" in warnings[0]
    assert json.loads(Path("reports/registration.json").read_text())["feed"]["arm"] == "plain"
    mlflow.MlflowClient().restore_experiment(experiment_id)
    register_students.fn()
    assert served().metadata.signature is not None


@pytest.mark.parametrize("uri", ["gopher://me:secret@host/db", "sqlite:///no/such/folder.db"])
def test_a_store_that_fails_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    fill(tmp_path)
    (tmp_path / "no").write_text("a file where a folder should be")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    Path("params/tracking.yaml").write_text(f"uri: {uri}\nexperiment: test\nartifacts: artifacts\n")
    with caplog.at_level(logging.WARNING):
        register_students.fn()
    assert len([one for one in caplog.records if one.name == "tasks.registry"]) == 1
    assert "secret" not in caplog.text
    assert Path("reports/registration.json").is_file()


def test_a_registered_model_is_compared_by_what_its_arm_predicted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "params/evaluate.yaml").write_text("first_evaluation_window: 0\n")
    rows = pl.read_parquet(project / "data/windows/w0/part-00000.parquet")
    draw = np.random.default_rng(6)
    for arm in ("plain", "distilled"):
        folder = project / "models/students/feed" / arm / "seed-1/predictions"
        folder.mkdir(parents=True)
        rows.select(
            "example_id",
            "group",
            "event_time",
            label=pl.Series(np.arange(ROWS) % 3 == 0).cast(pl.Float32),
            logit=pl.Series(draw.normal(size=ROWS), dtype=pl.Float32),
        ).write_parquet(folder / "w0.parquet")
    compare_named("models:/towerflow-feed@champion", "models/students/feed/distilled", None, None)
    by_name = capsys.readouterr().out.splitlines()
    compare_named("models/students/feed/plain", "models/students/feed/distilled", None, None)
    assert by_name[3:] == capsys.readouterr().out.splitlines()[3:]
    for uri, why in {
        "models:/towerflow-feed@nobody": "nobody",
        "models:/towerflow-feed": "expected models:/NAME@ALIAS or models:/NAME/VERSION",
    }.items():
        with pytest.raises(InputError, match=f"^{uri}: .*{why}"):
            compare_named(uri, "models/students/feed/distilled", None, None)
    further = project / EXPORT / "further"
    further.write_text("another model")
    with pytest.raises(InputError, match=r"holds another model; check out the code .*dvc checkout"):
        compare_named("models:/towerflow-feed/1", "models/students/feed/distilled", None, None)
    further.unlink()
