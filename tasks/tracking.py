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
from tasks.versioning import code_version

logger = logging.getLogger(__name__)
PENDING = Path(".tracking")
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens runs and curves, not chats


class TrackingSettings(Settings):
    """params/tracking.yaml: the MLflow tracking URI, the experiment, and where artifacts go."""

    uri: str
    experiment: str
    artifacts: str


@dataclass
class RunRecord:
    """What one MLflow run holds.

    ``curves`` maps a metric name to its values, one a window, in order. ``artifacts`` maps a
    local file or folder to its folder in the run. ``data_version`` is the DVC hash of the windows.
    """

    name: str
    kind: str
    parameters: dict[str, Any]
    data_version: str
    dataset: str
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


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
    location = settings.artifacts if "://" in settings.artifacts else Path(settings.artifacts).resolve().as_uri()
    return mlflow, mlflow.create_experiment(settings.experiment, artifact_location=location, tags=MODEL_TRAINING)


def _send(run: RunRecord) -> None:
    """Write one record as one finished MLflow run."""
    mlflow, experiment_id = connect()
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Metric, Param, RunTag

    with mlflow.start_run(experiment_id=experiment_id, run_name=run.name) as active:
        client, run_id, now_ms = mlflow.MlflowClient(), active.info.run_id, active.info.start_time
        metrics = [Metric(key, value, now_ms, 0) for key, value in run.metrics.items()]
        metrics += [
            Metric(key, value, now_ms, step) for key, values in run.curves.items() for step, value in enumerate(values)
        ]
        tags = {"kind": run.kind, "data_version": run.data_version, **run.tags}
        client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(key, str(value)) for key, value in run.parameters.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # two names of one source class
            source = resolve_dataset_source(WINDOWS.resolve().as_uri())
        mlflow.log_input(MetaDataset(source, name=run.dataset, digest=run.data_version[:36]), context="training")
        for local, folder in run.artifacts.items():
            path = Path(local)
            if path.is_dir():
                mlflow.log_artifacts(str(path), folder)
            elif path.is_file():
                mlflow.log_artifact(str(path), folder)
