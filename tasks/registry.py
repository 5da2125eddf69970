"""Register the best arm of each student in MLflow."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import polars as pl
from prefect import task

from recsys.data.schema import Schema, task_columns
from recsys.distill.student_settings import DISTILLED, PLAIN
from tasks.project import EVALUATION, REGISTRATION, STUDENTS, WINDOWS, require
from tasks.tracking import connect
from tasks.versioning import code_version, output_version

logger = logging.getLogger(__name__)
ALIAS = "champion"
EXAMPLE_ROWS = 3


@task
def register_students() -> None:
    """Register each student's arm with the lower NE, give it the alias ``champion``, write
    reports/registration.json.

    If MLflow is away, the models stay in models/students and the run says so; training results are
    not lost.
    """
    require(WINDOWS, STUDENTS, EVALUATION)
    report = json.loads((EVALUATION / "report.json").read_text())
    rows, comparisons = report["students"], report.get("comparisons", {})
    chosen = {
        name: _best_arm(rows[name], comparisons.get(name, {DISTILLED: {}})) for name in sorted(rows)
    }
    registration = {
        name: {
            "arm": arm,
            "model_sha256": _folder_hash(_export(name, arm)),
            "ne": rows[name]["ne"][arm],
        }
        for name, arm in chosen.items()
    }
    register_models({name: (arm, _export(name, arm)) for name, arm in chosen.items()}, ALIAS)
    REGISTRATION.parent.mkdir(parents=True, exist_ok=True)
    scratch = REGISTRATION.with_suffix(".tmp")
    scratch.write_text(json.dumps(registration, indent=1, sort_keys=True) + "\n")
    scratch.replace(REGISTRATION)


def _best_arm(student: dict, compared: Iterable[str]) -> str:
    return min((PLAIN, *compared), key=lambda arm: student["ne"][arm])


def _folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the folder's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _export(name: str, arm: str) -> Path:
    return STUDENTS / name / arm / "export"


def register_models(chosen: dict[str, tuple[str, Path]], alias: str) -> None:
    """One MLflow run that holds the served model of each student, and a new version of each
    registered model.

    If MLflow is away, the models stay where they are and the run says so.

    Args:
        chosen: arm and folder of the served model, by student.
        alias: the new version takes it from the one before.
    """
    try:
        _register(chosen, alias)
    except OSError as error:
        folders = ", ".join(str(folder) for _, folder in chosen.values())
        logger.warning("MLflow did not take the models, which stay in %s: %s", folders, error)


def _register(chosen: dict[str, tuple[str, Path]], alias: str) -> None:
    mlflow, experiment_id = connect()
    from tasks import served_model

    schema = Schema.load(WINDOWS)
    window, labels = schema.windows[-1].name, task_columns("label", schema.tasks)
    example = (
        pl.read_parquet(sorted((WINDOWS / window).glob("part-*.parquet"))[0])
        .head(EXAMPLE_ROWS)
        .to_pandas()
    )
    client = mlflow.MlflowClient()
    with (
        warnings.catch_warnings(
            action="ignore", category=UserWarning
        ),  # a hint that integer columns hold no missing
        mlflow.start_run(experiment_id=experiment_id, run_name="registered models"),
    ):
        mlflow.set_tags(
            {
                "kind": "model",
                "data_version": output_version(WINDOWS),
                "code_version": code_version(),
            }
        )
        for name, (arm, export) in chosen.items():
            registered = f"towerflow-{name}"
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=served_model.__file__,
                artifacts={"student": str(export)},
                code_paths=["recsys"],
                input_example=example.drop(columns=["label_time", *labels]),
                registered_model_name=registered,
                pip_requirements="requirements/cpu.lock",
            )
            version = logged.registered_model_version
            client.set_registered_model_alias(registered, alias, version)
            client.set_model_version_tag(registered, version, "arm", arm)
