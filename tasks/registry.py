"""Register the best arm of each student in MLflow."""

import hashlib
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from prefect import task

from recsys.data.schema import Schema, task_columns
from tasks.project import EVALUATION, REGISTRATION, STUDENTS, WINDOWS, require
from tasks.tracking import connect
from tasks.versioning import code_version, output_version

logger = logging.getLogger(__name__)
CHAMPION, CHALLENGER = "champion", "challenger"
EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class Served:
    """A served model: the arm that it is of, its folder, and the alias that its version takes."""

    arm: str
    folder: Path
    alias: str


@task
def register_students() -> None:
    """Register each student's arm of the lowest NE and write reports/registration.json.

    It gets the alias ``champion``; one that loses to the baseline of evaluate.yaml's ``gate`` gets
    ``challenger``, and the champion of before stays.

    If MLflow is away, the models stay in models/students and the run says so; training results are
    not lost.
    """
    require(WINDOWS, STUDENTS, EVALUATION)
    report = json.loads((EVALUATION / "report.json").read_text())
    verdicts = {name: report["verdicts"][name] for name in sorted(report["verdicts"])}
    registration = {
        name: {
            "arm": verdict["arm"],
            "alias": CHAMPION if verdict["passes"] else CHALLENGER,
            "why": verdict["why"],
            "model_sha256": _folder_hash(_export(name, verdict["arm"])),
            "ne": verdict["ne"],
        }
        for name, verdict in verdicts.items()
    }
    for name, one in registration.items():
        if one["alias"] == CHALLENGER:
            logger.warning("%s is registered as challenger only: %s", name, one["why"])
    register_models(
        {
            name: Served(one["arm"], _export(name, one["arm"]), one["alias"])
            for name, one in registration.items()
        }
    )
    REGISTRATION.parent.mkdir(parents=True, exist_ok=True)
    scratch = REGISTRATION.with_suffix(".tmp")
    scratch.write_text(json.dumps(registration, indent=1, sort_keys=True) + "\n")
    scratch.replace(REGISTRATION)


def _folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the folder's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _export(name: str, arm: str) -> Path:
    return STUDENTS / name / arm / "export"


def register_models(chosen: dict[str, Served]) -> None:
    """One MLflow run that holds the served model of each student, and a new version of each
    registered model.

    If MLflow is away, the models stay where they are and the run says so.

    Args:
        chosen: the served model by student; its version takes the alias from the one before.
    """
    try:
        _register(chosen)
    except OSError as error:
        folders = ", ".join(str(one.folder) for one in chosen.values())
        logger.warning("MLflow did not take the models, which stay in %s: %s", folders, error)


def _register(chosen: dict[str, Served]) -> None:
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
        for name, one in chosen.items():
            registered = f"towerflow-{name}"
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=served_model.__file__,
                artifacts={"student": str(one.folder)},
                code_paths=["recsys"],
                input_example=example.drop(columns=["label_time", *labels]),
                registered_model_name=registered,
                pip_requirements="requirements/cpu.lock",
            )
            version = logged.registered_model_version
            client.set_registered_model_alias(registered, one.alias, version)
            client.set_model_version_tag(registered, version, "arm", one.arm)
