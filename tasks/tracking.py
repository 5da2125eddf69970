"""MLflow: one record a run, written to disk first, so that tracking never stops training."""

import json
import logging
import os
import uuid
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from recsys.config import Settings, load_settings
from tasks.project import PARAMS, WINDOWS
from tasks.tracking_settings import TrackingSettings
from tasks.versioning import code_version

logger = logging.getLogger(__name__)
PENDING = Path(".tracking")
GROWS_TAG = "grows"  # names the model of a run that is gone on with
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: its UI shows the run under that one
METRICS_PER_REQUEST = 1000  # MLflow takes no more
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
    (PENDING / f"{uuid.uuid4().hex}.json").write_text(json.dumps(asdict(run)))
    for path in sorted(PENDING.glob("*.json"), key=lambda p: p.stat().st_mtime_ns):
        try:
            _send(RunRecord(**json.loads(path.read_text())))
        except Exception as error:  # whatever MLflow raises, training goes on
            logger.warning("MLflow did not take %s (%s); it waits in %s", run.name, error, path)
            return
        path.unlink()


def flatten(settings: Settings) -> dict[str, Any]:
    """Settings as dotted keys, ``{"model.embedding_dimension": 16}``."""
    return pd.json_normalize(settings.model_dump(mode="json"), sep=".").to_dict("records")[0]


def connect() -> tuple[Any, str]:
    """The MLflow module, set to the project's store, and the id of its experiment."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow  # about 2 s: only where a run is sent

    settings = load_settings(PARAMS / "tracking.yaml", TrackingSettings)
    mlflow.set_tracking_uri(settings.uri)
    experiment = mlflow.get_experiment_by_name(settings.experiment)
    if experiment is not None:
        return mlflow, experiment.experiment_id
    location = (
        settings.artifacts
        if "://" in settings.artifacts
        else Path(settings.artifacts).resolve().as_uri()
    )
    return mlflow, mlflow.create_experiment(
        settings.experiment, artifact_location=location, tags=MODEL_TRAINING
    )


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
