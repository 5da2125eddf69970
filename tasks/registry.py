"""Register the best arm of each student in MLflow."""

import hashlib
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
from prefect import task

from recsys.config import InputError
from recsys.evaluation.gate import Verdict
from recsys.serving.publication import model_hash
from recsys.training.quiet import quiet_libraries
from tasks.gating import JUDGED_FILE, MODEL_TAG, gated, judged_rows, known_version
from tasks.project import EVALUATION, REGISTRATION, STUDENTS, WINDOWS, require
from tasks.tracking import PARENT_TAG, connect, find_run, in_one_line, open_parent
from tasks.versioning import code_version, output_version

if TYPE_CHECKING:
    import polars as pl

    from recsys.data.encoder_format import RawColumn
    from recsys.serving.predictor import Predictor

logger = logging.getLogger(__name__)
# MLflow checks the example, and compares installed packages with the lock file
MLFLOW_CHATTER = ("mlflow.pyfunc", "mlflow.utils.requirements_utils")
CHAMPION, CHALLENGER = "champion", "challenger"
EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class Served:
    """A served model: its arm, its folder, the alias for its version, and the reason in words.

    ``judged`` holds its predictions on the rows that judge it, on which the next model is compared
    with it; None if there are none.
    """

    arm: str
    folder: Path
    alias: str
    why: str
    judged: "pl.DataFrame | None" = None


@task(task_run_name="register the students", tags=["registry"])
def register_students() -> None:
    """Register each student's arm with the lowest NE and write reports/registration.json.

    It gets the alias ``champion``. If it fails the ``gate`` of evaluate.yaml (baseline, present
    champion on the same rows, calibration, budget), it gets ``challenger`` and the present champion
    stays. A model that is already registered is not registered again.

    If MLflow is away, the models stay in models/students, and a warning says so; no training
    results are lost.
    """
    require(WINDOWS, STUDENTS, EVALUATION)
    report = json.loads((EVALUATION / "report.json").read_text())
    found = {name: Verdict(**report["verdicts"][name]) for name in sorted(report["verdicts"])}
    judged = {name: judged_rows(name, verdict.arm) for name, verdict in found.items()}
    verdicts = {
        name: gated(name, verdict, _export(name, verdict.arm), judged[name]).as_json()
        for name, verdict in found.items()
    }
    registration = {
        name: {
            "arm": verdict["arm"],
            "alias": CHAMPION if verdict["passes"] else CHALLENGER,
            "why": verdict["why"],
            "model_sha256": folder_hash(_export(name, verdict["arm"])),
            "ne": verdict["ne"],
        }
        for name, verdict in verdicts.items()
    }
    for name, one in registration.items():
        if one["alias"] == CHALLENGER:
            logger.warning("%s is registered as challenger only: %s", name, one["why"])
    register_models(
        {
            name: Served(
                one["arm"], _export(name, one["arm"]), one["alias"], one["why"], judged[name]
            )
            for name, one in registration.items()
        }
    )
    REGISTRATION.parent.mkdir(parents=True, exist_ok=True)
    scratch = REGISTRATION.with_suffix(".tmp")
    scratch.write_text(json.dumps(registration, indent=1, sort_keys=True) + "\n")
    scratch.replace(REGISTRATION)


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the folder's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _export(name: str, arm: str) -> Path:
    return STUDENTS / name / arm / "export"


def register_models(chosen: dict[str, Served]) -> None:
    """Record one MLflow run with each student's served model, and add a version with a description
    to each registered model.

    If MLflow does not take the models, they stay where they are, and a warning says so.

    Args:
        chosen: the served model per student; its version takes over the alias from the previous
            one.

    Raises:
        InputError: a folder does not contain an export, or params/tracking.yaml is wrong.
    """
    from recsys.serving.predictor import Predictor

    predictors = {name: Predictor.load(one.folder) for name, one in chosen.items()}
    examples = {name: _example(predictor) for name, predictor in predictors.items()}
    left = dict(chosen)
    try:
        mlflow, experiment_id = connect()
        parent = find_run(mlflow.MlflowClient(), experiment_id, open_parent())
        under = {PARENT_TAG: parent.info.run_id} if parent else {}
        with mlflow.start_run(
            experiment_id=experiment_id, run_name="registered models", tags=under
        ):
            versions = {"data_version": output_version(WINDOWS), "code_version": code_version()}
            mlflow.set_tags({"kind": "model", **versions})
            for name, one in chosen.items():
                _log(name, one, predictors[name], examples[name], versions)
                del left[name]
    except InputError:
        raise
    except Exception as error:  # whatever MLflow raises, the models still exist
        folders = ", ".join(str(one.folder) for one in (left or chosen).values())
        reason = in_one_line(error)
        logger.warning("MLflow did not take the models, which stay in %s: %s", folders, reason)


def _example(predictor: "Predictor") -> pd.DataFrame:
    """A few example rows for ``predictor``, with the raw columns that it reads."""
    rows = pd.DataFrame(predictor.example_rows()).head(EXAMPLE_ROWS)
    types = {column.name: column.type for column in predictor.raw_columns}
    for name in rows.columns:
        if types[name] == "time":
            rows[name] = pd.to_datetime(rows[name])
    return rows


def _log(
    name: str,
    one: Served,
    predictor: "Predictor",
    example: pd.DataFrame,
    versions: dict[str, str],
) -> None:
    """Log the model of the student ``name`` in the active run and register it as a version."""
    import mlflow
    from mlflow.models import ModelSignature, infer_signature

    from tasks import served_model

    client, registered = mlflow.MlflowClient(), f"towerflow-{name}"
    same = known_version(client, registered, one.folder)
    if same is not None:
        client.set_registered_model_alias(registered, one.alias, same)
        logger.info("%s: version %s is this model already: %s", registered, same, one.why)
        return
    outputs = infer_signature(model_output=served_model.probabilities(predictor, example)).outputs
    with (
        TemporaryDirectory() as scratch,
        quiet_libraries(MLFLOW_CHATTER),
        warnings.catch_warnings(action="ignore", category=UserWarning),
    ):  # a hint that integer columns hold no missing
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=served_model.__file__,
            artifacts={"student": str(one.folder)} | _judged_file(one, Path(scratch)),
            code_paths=["recsys"],
            input_example=example,
            signature=ModelSignature(_inputs(predictor), outputs),
            registered_model_name=registered,
            pip_requirements="requirements/cpu.lock",
        )
    version = str(logged.registered_model_version)
    domain = "all domains" if predictor.domain is None else predictor.domain
    client.update_model_version(
        registered,
        version,
        f"Student {name}, serves {domain}, arm {one.arm}; registered as {one.alias}: {one.why}.",
    )
    tags = {"student": name, "domain": domain, "arm": one.arm, **versions}
    tags[MODEL_TAG] = model_hash(one.folder)
    for key, value in tags.items():
        client.set_model_version_tag(registered, version, key, value)
    client.set_registered_model_alias(registered, one.alias, version)


def _judged_file(one: Served, folder: Path) -> dict[str, str]:
    if one.judged is None:
        return {}
    one.judged.write_parquet(folder / JUDGED_FILE)
    return {"judged": str(folder / JUDGED_FILE)}


def _inputs(predictor: "Predictor") -> Any:
    """MLflow's schema of the raw columns that are read, with the log's types.

    The type is ``any`` where MLflow would refuse valid values: integers where it expects floats,
    and integers with gaps, which pandas turns into floats.
    """
    from mlflow.types import ColSpec, DataType
    from mlflow.types import Schema as MlflowSchema
    from mlflow.types.schema import AnyType, Array

    types = {
        "integer": DataType.long,
        "number": DataType.double,
        "boolean": DataType.boolean,
        "text": DataType.string,
        "time": DataType.datetime,
    }

    def type_of(column: "RawColumn") -> Any:
        if column.is_list:
            return Array(types[column.type])
        untyped = column.is_text and column.type != "text"  # a log with text columns only
        holds_floats = column.type == "number" or (column.type == "integer" and column.optional)
        return AnyType() if untyped or holds_floats else types[column.type]

    return MlflowSchema(
        [
            ColSpec(type_of(column), column.name, required=not column.optional)
            for column in predictor.raw_columns
        ]
    )
