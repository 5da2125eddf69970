"""Registered models ask for what they read, take pandas' own types, and say what they are; models
that MLflow does not take stay."""

import json
import logging
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from mlflow.exceptions import MlflowException

from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.evaluation.gate import Verdict
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.serving.export import export_ranker
from recsys.serving.predictor import Predictor
from recsys.serving.publication import model_hash
from tasks.comparing import compare_named
from tasks.gating import gated
from tasks.registry import Served, register_models, register_students
from tasks.tracking import connect
from tests.support.mlflow_stores import empty_store
from tests.support.projects import ROOT

ROWS = 40
DESCRIBED: dict[str, Any] = {
    "files": ["log.parquet"],
    "file_format": "parquet",
    "time": {"column": "ts", "unit": "datetime"},
    "label": "clicked",
    "domain": {"column": "site", "values": {"f": "feed", "v": "video"}},
    "dense": ["price", "shown"],
    "categorical": [
        {"column": "user", "table_rows": 30},
        {"column": "age", "table_rows": 30},
        {"column": "past", "table_rows": 20, "kind": "list"},
    ],
}
FEATURES = ["price", "shown", "user", "age", "past"]
WHY = "plain has NE 0.9541, 1.2 % below logistic (own rows)"
EXPORT = Path("models/students/feed/plain/export")


def log() -> pl.DataFrame:
    """Raw rows of two domains."""
    draw = np.random.default_rng(5)
    return pl.DataFrame(
        {
            "ts": [datetime(2024, 1, 1, 1, minute) for minute in range(ROWS)],
            "clicked": [index % 3 == 0 for index in range(ROWS)],
            "site": ["f", "v"] * (ROWS // 2),
            "price": [None, *draw.normal(size=ROWS - 1)],
            "shown": draw.integers(9, size=ROWS),
            "user": [f"u{one}" for one in draw.integers(30, size=ROWS)],
            "age": [None if one < 20 else int(one) for one in draw.integers(15, 60, size=ROWS)],
            "past": [draw.integers(20, size=draw.integers(4)).tolist() for _ in range(ROWS)],
        },
        schema_overrides={"past": pl.List(pl.Int64)},
    )


def fill(folder: Path) -> None:
    """A project with data, one student and a report on it, and MLflow's store."""
    folder.mkdir(exist_ok=True)
    for name in ("recsys", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("params", "data/windows", "reports/evaluation"):
        (folder / name).mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(empty_store())
    (folder / "params/tracking.yaml").write_text(
        "uri: sqlite:///mlflow.db\nexperiment: test\nartifacts: artifacts\n"
    )
    (folder / "params/evaluate.yaml").write_text("first_evaluation_window: 0\n")
    (folder / "params/students.yaml").write_text("seeds: [1]\n")
    log().write_parquet(folder / "log.parquet")
    dataset = DatasetSettings.model_validate({"format": "table", "table": DESCRIBED})
    data = DataSettings(root=str(folder), dataset="toy")
    ingest(data, dataset, folder / "data/windows", folder / "data/oracle")
    export(folder / EXPORT, "feed", Schema.load(folder / "data/windows"))
    verdict = {"arm": "plain", "ne": 0.9541, "passes": True, "why": WHY}
    report = json.dumps({"verdicts": {"feed": verdict}})
    (folder / "reports/evaluation/report.json").write_text(report)


def export(folder: Path, domain: str | None, schema: Schema) -> None:
    settings = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.normal(0, 0.5, value.shape, generator=generator)
        for name, value in build_ranker(schema, settings, None, 7).state_dict().items()
    }
    windows = next(one for one in folder.absolute().parents if (one / "data").is_dir())
    encoder = Encoder.load(windows / "data/windows")
    export_ranker(state, schema, settings, encoder, folder, domain=domain)


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
    """Feed's rows as the log has them."""
    return log().filter(pl.col("site") == "f").to_pandas()


def served(alias: str = "champion", name: str = "towerflow-feed") -> Any:
    mlflow, _ = connect()
    return mlflow.pyfunc.load_model(f"models:/{name}@{alias}")


def test_a_registered_model_asks_for_the_raw_features_alone(
    project: Path, rows: pd.DataFrame
) -> None:
    model = served()
    columns = {
        one["name"]: (one["type"], one["required"])
        for one in model.metadata.signature.inputs.to_dict()
    }
    assert columns == {
        "price": ("any", False),  # of floats MLflow would refuse whole numbers
        "shown": ("long", True),
        "user": ("string", True),
        "age": ("any", False),
        "past": ("array", False),
        "site": ("string", False),
    }
    assert list(model.input_example.columns) == FEATURES
    assert model.input_example["user"].tolist() == rows["user"].head(3).tolist()
    expected = Predictor.load(EXPORT).predict(rows)
    part = pl.read_parquet("data/windows/*/part-*.parquet").filter(pl.col("domain") == 0)
    np.testing.assert_array_equal(Predictor.load(EXPORT).predict_encoded(part), expected)
    np.testing.assert_array_equal(model.predict(rows[FEATURES]), expected)
    np.testing.assert_array_equal(model.predict(rows), expected)
    required = model.predict(rows[["shown", "user"]])
    assert np.isfinite(required).all() and (required != expected).any()


def test_a_registered_model_takes_pandas_own_types(project: Path, rows: pd.DataFrame) -> None:
    expected = Predictor.load(EXPORT).predict(rows)
    table = pd.DataFrame({name: rows[name].tolist() for name in FEATURES})  # as one would write it
    table["shown"] = table["shown"].astype("int64")
    table["past"] = [list(map(int, one)) or None for one in table["past"]]
    np.testing.assert_array_equal(served().predict(table), expected)
    small = table.astype({"shown": "int32", "age": "Int64"})
    np.testing.assert_array_equal(served().predict(small), expected)


def test_rows_of_another_domain_are_refused(project: Path, rows: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="such as video; this model serves feed"):
        served().predict(rows.assign(site="v"))


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
        "model": model_hash(EXPORT),
    }
    registration = json.loads((project / "reports/registration.json").read_text())
    assert registration["feed"]["alias"] == "champion" and registration["feed"]["why"] == WHY


def test_a_model_of_several_domains_and_tasks(project: Path, rows: pd.DataFrame) -> None:
    schema = replace(Schema.load(Path("data/windows")), tasks=["click", "sale"])
    export(Path("both"), None, replace(schema, further_base_rates=[0.1]))
    register_models({"both": Served("plain", Path("both"), "stream", "it is the only one")})
    model, columns = served("stream", "towerflow-both"), [*FEATURES, "site"]
    assert list(model.input_example.columns) == columns
    expected = Predictor.load(Path("both")).predict_tasks(rows.assign(site="video"))
    found = model.predict(rows.assign(site="v")[columns])
    for task in schema.tasks:
        np.testing.assert_array_equal(found[task], expected[task])
    with pytest.raises(MlflowException, match="site"):
        model.predict(rows[FEATURES])


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
    assert version.version in (1, "1")  # it is the same model
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    Path("params/tracking.yaml").write_text("experiment: test\nartifacts: artifacts\n")
    with caplog.at_level(logging.WARNING):
        register_students.fn()
    assert len([one for one in caplog.records if one.name == "tasks.registry"]) == 1
    assert "secret" not in caplog.text
    assert Path("reports/registration.json").is_file()


def test_a_registered_model_is_compared_by_what_its_arm_predicted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "params/evaluate.yaml").write_text("first_evaluation_window: 0\n")
    rows = pl.DataFrame({name: np.arange(ROWS) for name in ("example_id", "group", "event_time")})
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


def judged(draw: np.random.Generator, knows: float, ids: range) -> pl.DataFrame:
    """Predictions of rows whose label is that of ``ids``, known to a degree."""
    labels = np.array([one % 3 == 0 for one in ids])
    logits = draw.normal(size=len(ids)) + knows * (labels - 0.3)
    return pl.DataFrame(
        {
            "example_id": list(ids),
            "group": [one % 50 for one in ids],
            "event_time": list(ids),
            "label": labels.astype(np.float32),
            "logit": logits.astype(np.float32),
        }
    )


def test_a_challenger_is_held_to_the_champions_rows_in_the_registry(project: Path) -> None:
    draw = np.random.default_rng(8)
    champion, challenger = Path("champion"), Path("challenger")
    export(champion, "feed", Schema.load(Path("data/windows")))
    export(challenger, None, Schema.load(Path("data/windows")))
    fair = Verdict("plain", 0.9, True, "it beats the baseline")
    before = judged(draw, 1.0, range(300))
    assert gated("held", fair, champion, before) == fair  # there is no champion yet
    register_models({"held": Served("plain", champion, "champion", "it is the first", before)})

    better = gated("held", fair, challenger, judged(draw, 3.0, range(100, 400)))
    assert better.passes
    assert re.search(r"NE -0\.\d+ .* against champion version 1 on 200 rows$", better.why)
    worse = gated("held", fair, challenger, judged(draw, 0.0, range(300)))
    assert not worse.passes
    assert re.search(r"NE \+0\.\d+ .* 1 on 300 rows, which is not certainly better$", worse.why)
    again = gated("held", fair, challenger, before)
    assert not again.passes and "NE +0.00000 [+0.00000, +0.00000]" in again.why

    assert gated("held", fair, champion, judged(draw, 0.0, range(300))) == fair  # it is the same
    assert gated("held", fair, challenger, judged(draw, 0.0, range(300, 400))) == fair  # no row
    refused = replace(fair, passes=False)
    assert not gated("held", refused, challenger, judged(draw, 3.0, range(300))).passes
