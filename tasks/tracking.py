"""MLflow: one record a run, written to disk first, so that tracking never stops training."""

import json
import logging
import os
import sqlite3
import uuid
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from recsys.config import InputError, Settings, load_settings
from recsys.files import read_json, write_atomically
from tasks.project import PARAMS, WINDOWS
from tasks.tracking_settings import TrackingSettings, without_credentials
from tasks.versioning import code_version

logger = logging.getLogger(__name__)
PENDING = Path(".tracking")
DAMAGED_SUFFIX = ".damaged"
GROWS_TAG = "grows"  # names the model of a run that is gone on with
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: its UI shows the run under that one
METRICS_PER_REQUEST = 1000  # MLflow takes no more
HTTP_RETRIES = "3"  # about 15 s; MLflow's 7 take four minutes, for each run while a server is away
SQLITE = "sqlite:///"
PATHS_IN_STORE = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]
# The UI opens runs and curves, not chats
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}


@dataclass
class RunRecord:
    """What one MLflow run holds.

    ``curves`` maps a metric name to its values, one a window, in order; None where it is not
    defined. ``artifacts`` maps a local file or folder to its folder in the run. ``data_version`` is
    the DVC hash of the windows. ``grows`` names a model that grows: its records go on with one
    MLflow run, each from step ``first_step`` on. ``parent`` is what such a run, under which this
    one is shown, ``grows``. ``source`` is the folder of the windows.
    """

    name: str
    kind: str
    parameters: dict[str, Any]
    data_version: str
    dataset: str
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    grows: str = ""
    first_step: int = 0
    parent: str = ""
    source: str = str(WINDOWS)


def record(run: RunRecord) -> None:
    """Log a run to MLflow; if that fails, keep it on disk, to be sent with the next one."""
    PENDING.mkdir(exist_ok=True)
    run.tags["code_version"] = code_version()
    write_atomically(PENDING / f"{uuid.uuid4().hex}.json", json.dumps(asdict(run)).encode())
    for path in sorted(PENDING.glob("*.json"), key=lambda p: p.stat().st_mtime_ns):
        try:
            waiting = RunRecord(**read_json(path))
        except (InputError, TypeError) as error:  # it would stop all that come after it
            aside = path.with_suffix(DAMAGED_SUFFIX)
            path.rename(aside)
            logger.warning("%s is damaged (%s) and is set aside", aside, in_one_line(error))
            continue
        try:
            _send(waiting)
        except Exception as error:  # whatever MLflow raises, training goes on
            reason = in_one_line(error)
            logger.warning("MLflow did not take %s (%s); it waits in %s", run.name, reason, path)
            return
        path.unlink()


def flatten(settings: Settings) -> dict[str, Any]:
    """Settings as dotted keys, ``{"model.embedding_dimension": 16}``."""
    return pd.json_normalize(settings.model_dump(mode="json"), sep=".").to_dict("records")[0]


def in_one_line(error: Exception) -> str:
    """What ``error`` says in its first line, without credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])


def connect() -> tuple[Any, str]:
    """The MLflow module, set to the project's store, and the id of its experiment.

    Where the project's folder was moved or copied, the paths in its own store follow it first.

    Raises:
        InputError: params/tracking.yaml is wrong.
        MlflowException: MLflow is away, or the experiment was deleted. Much else that MLflow lets
            through: an error of the database, of a store of artifacts, a driver that is missing.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", HTTP_RETRIES)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow  # about 2 s: only where a run is sent

    settings = load_settings(PARAMS / "tracking.yaml", TrackingSettings)
    shown_uri = without_credentials(settings.uri)
    if shown_uri != settings.uri:  # MLflow prints the address of each run with them
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    database = _own_database(settings.uri)
    # One store a URI and process: a relative one would stay that of the first folder
    mlflow.set_tracking_uri(settings.uri if database is None else f"sqlite:///{database}")
    experiment = mlflow.get_experiment_by_name(settings.experiment)
    if experiment is None:
        is_uri = "://" in settings.artifacts
        artifacts = settings.artifacts if is_uri else Path(settings.artifacts).resolve().as_uri()
        return mlflow, mlflow.create_experiment(
            settings.experiment, artifact_location=artifacts, tags=MODEL_TRAINING
        )
    if experiment.lifecycle_stage == "deleted":
        raise mlflow.MlflowException(
            f"the experiment {settings.experiment!r} of {shown_uri} was deleted; bring it back: "
            f"MLFLOW_TRACKING_URI={shown_uri} mlflow experiments restore -x "
            f"{experiment.experiment_id}, or name another one in {PARAMS / 'tracking.yaml'}"
        )
    if database is not None:
        _follow_the_project(database, settings.artifacts, experiment.artifact_location)
    return mlflow, experiment.experiment_id


def _own_database(uri: str) -> Path | None:
    """The file of a store that lies in the project's folder; None for any other store."""
    path = Path(uri.removeprefix(SQLITE)).resolve()
    is_file = uri.startswith(SQLITE) and "?" not in uri and ":memory:" not in uri
    return path if is_file and path.is_relative_to(Path().resolve()) else None


def _follow_the_project(database: Path, artifacts: str, location: str) -> None:
    """Let the paths in the project's own store follow the project's folder.

    MLflow keeps absolute paths: of a copy, it would write into the folder that was copied.

    Args:
        artifacts: the folder of artifacts, as set.
        location: the same, as the store has it.
    """
    old, new = location.removesuffix(f"/{quote(artifacts)}"), Path().resolve().as_uri()
    if not location.startswith("file://") or old in (location, new):
        return
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        for table, column in PATHS_IN_STORE:
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )
    logger.warning("the project was at %s: MLflow's paths follow it to %s", old, new)


def _send(run: RunRecord) -> None:
    """Write one record as one finished MLflow run, or as what follows in the run of a model that
    grows."""
    mlflow, experiment_id = connect()
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Param, RunTag

    client = mlflow.MlflowClient()
    grown = _run_that_grows(client, experiment_id, run.grows) if run.grows else None
    with mlflow.start_run(run_id=grown, experiment_id=experiment_id, run_name=run.name) as active:
        run_id = active.info.run_id
        metrics = _metrics(run, active.info.start_time)
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
        tags = {"kind": run.kind, "data_version": run.data_version, **run.tags}
        tags |= {GROWS_TAG: run.grows} if run.grows else {}
        parent = _run_that_grows(client, experiment_id, run.parent) if run.parent else None
        tags |= {PARENT_TAG: parent} if parent else {}
        client.log_batch(
            run_id,
            params=[]
            if grown
            else [Param(key, str(value)) for key, value in run.parameters.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        # Two names of one source class
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            source = resolve_dataset_source(Path(run.source).resolve().as_uri())
        mlflow.log_input(
            MetaDataset(source, name=run.dataset, digest=run.data_version[:36]), context="training"
        )
        for local, folder in run.artifacts.items():
            path = Path(local)
            if path.is_dir():
                mlflow.log_artifacts(str(path), folder)
            elif path.is_file():
                mlflow.log_artifact(str(path), folder)


def _run_that_grows(client: Any, experiment_id: str, name: str) -> str | None:
    """The id of the run of the growing model ``name``; None where there is none yet."""
    found = client.search_runs([experiment_id], f"tags.{GROWS_TAG} = '{name}'", max_results=1)
    return found[0].info.run_id if found else None


def _metrics(run: RunRecord, time_ms: int) -> list[Any]:
    """The record's metrics and curves; with the time of the run's start, so that one sent twice is
    kept once."""
    from mlflow.entities import Metric

    values = [Metric(key, value, time_ms, 0) for key, value in run.metrics.items()]
    for key, curve in run.curves.items():
        steps = enumerate(curve, start=run.first_step)
        values += [Metric(key, value, time_ms, step) for step, value in steps if value is not None]
    return values
