"""MLflow on PostgreSQL and an S3-like store, and DVC on the latter, by settings alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import psycopg
import pytest

from tasks.tracking import RunRecord, connect, record
from tests.support import services

BUCKET = "results"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if not services.has_postgresql():
        pytest.skip("needs apt-get install postgresql")
    with services.postgresql() as uri:
        yield uri


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with services.s3() as url:
        bucket = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", **services.S3_CREDENTIALS
        )
        bucket.create_bucket(Bucket=BUCKET)
        yield url


def environment(endpoint: str) -> dict[str, str]:
    keys = {name.upper(): value for name, value in services.S3_CREDENTIALS.items()}
    return {**keys, "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_S3_ENDPOINT_URL": endpoint}


def test_mlflow_keeps_runs_in_postgresql_and_artifacts_in_s3(
    database: str,
    endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    Path("params").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)  # its password belongs into no file
    Path("params/tracking.yaml").write_text(f"artifacts: s3://{BUCKET}/runs\nwait_seconds: 100\n")
    Path("report.txt").write_text("all is well")
    record(
        RunRecord(
            "one", "test", {"rate": 0.1}, "d0", "toy", {"ne": 0.9}, artifacts={"report.txt": ""}
        )
    )
    mlflow, experiment_id = connect()
    [run] = mlflow.MlflowClient().search_runs([experiment_id])
    assert run.data.metrics == {"ne": 0.9}
    assert run.info.artifact_uri.startswith(f"s3://{BUCKET}/runs")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/report.txt") == "all is well"
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM runs")
        assert cursor.fetchall() == [("one",)]
    assert services.PASSWORD not in caplog.text + "".join(capfd.readouterr())


def test_dvc_pushes_to_s3_and_another_clone_pulls(endpoint: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()

    def run(folder: Path, *command: str) -> None:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **environment(endpoint)},
            check=True,
            capture_output=True,
        )

    def dvc(folder: Path, *command: str) -> None:
        run(folder, sys.executable, "-m", "dvc", *command)

    run(first, "git", "init", "--quiet")
    dvc(first, "init", "--quiet")
    dvc(first, "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
    dvc(first, "remote", "modify", "store", "endpointurl", endpoint)
    (first / "model").write_text("weights")
    dvc(first, "add", "model")
    dvc(first, "push")
    second.mkdir()
    run(second, "git", "init", "--quiet")
    for name in (".dvc/config", "model.dvc"):
        (second / name).parent.mkdir(exist_ok=True)
        (second / name).write_text((first / name).read_text())
    dvc(second, "pull")
    assert (second / "model").read_text() == "weights"
