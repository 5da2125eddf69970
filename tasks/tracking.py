"""Record runs for MLflow, on disk first, so that tracking never stops training."""

import getpass
import logging
import os
import re
import socket
import sqlite3
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from recsys.config import Settings, load_settings
from tasks import spool
from tasks.project import PARAMS, WINDOWS
from tasks.spool import SPOOL as PENDING
from tasks.spool import RefusedError
from tasks.tracking_settings import TrackingSettings, without_credentials
from tasks.versioning import code_version, git_commit

logger = logging.getLogger(__name__)
GROWS_TAG = "grows"  # names the model of a run that later records continue
NEXT_STEP_TAG = "next_step"  # on such a run: the first step that it lacks
KEY_TAG = "run_key"  # names a run for its later records
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: its UI nests the run under that one
NOTE_TAG = "mlflow.note.content"  # MLflow's own: the description, in Markdown
METRICS_PER_REQUEST = 1000  # MLflow's limit
PARAMS_PER_REQUEST = 100
LONGEST_PARAM = 6000
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses in metric names
HTTP_RETRIES = "1"  # MLflow's default of 7 takes four minutes per run while a server is away
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
REFUSED_CODES = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
SQLITE = "sqlite:///"
PATHS_IN_STORE = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]
# The UI opens with runs and curves, not chats
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
_parents: list[str] = []  # keys of the open runs around what is recorded
_couriers: list[bool] = []  # non-empty if a separate process delivers; see tasks.courier


@dataclass
class RunRecord:
    """The contents of one MLflow run, or a part of them.

    ``curves`` maps a metric name to one value per window, in order; None where undefined.
    ``points`` are (name, step, value, ms since 1970). ``artifacts`` maps a local file or folder to
    its folder in the run. ``data_version`` is the DVC hash of the windows, and ``source`` their
    folder.

    ``key`` names the run for later records that continue it; while ``status`` is RUNNING, more will
    come. ``grows`` names a growing model: its records continue one MLflow run, each from step
    ``first_step`` on. ``parent`` is the ``key`` or ``grows`` of the run under which this one is
    shown. With ``loads``, the machine's load is recorded until the run ends. ``started_ms`` and
    ``written_ms`` are when the run began and when this was recorded, in ms since 1970.
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
    key: str = ""
    status: str = FINISHED
    points: list[tuple[str, int, float, int]] = field(default_factory=list)
    description: str = ""
    loads: bool = False
    started_ms: int = 0
    written_ms: int = 0


def record(run: RunRecord) -> None:
    """Write a run to disk for delivery to MLflow: by the process that :mod:`tasks.courier` started
    or, without one, at once. If MLflow does not take it, it waits for the next delivery.

    It is shown under the innermost open run of this process, unless it names its parent.
    """
    now = now_ms()
    run.written_ms = run.written_ms or now
    run.started_ms = run.started_ms or now
    run.key = run.key or run.grows or uuid.uuid4().hex
    run.parent = run.parent or next((one for one in reversed(_parents) if one != run.key), "")
    if run.name:
        run.tags = {**_origin(), **run.tags}
    spool.put(asdict(run), run.artifacts)
    if not _couriers:
        trouble = deliver()
        if trouble:
            logger.warning(
                "MLflow did not take %s (%s); it waits in %s", run.name, trouble, PENDING
            )


def record_points(key: str, points: list[tuple[str, int, float, int]]) -> None:
    """Add metric values (name, step, value, ms since 1970) to the open run ``key``."""
    record(_part(key, RUNNING, points=points))


def end_run(key: str, status: str) -> None:
    """End the run ``key``."""
    spool.close_run(key)
    record(_part(key, status))


@contextmanager
def open_run(run: RunRecord) -> Iterator[RunRecord]:
    """An MLflow run that lasts as long as the block and is the parent of runs recorded in it.

    What the block adds to the record's metrics, curves, tags and artifacts is sent at its end. The
    run's status is FAILED if the block ends with an error, and KILLED if it is interrupted or its
    process ends in any way.
    """
    with running(run):
        _parents.append(run.key)
        try:
            yield run
        finally:
            _parents.remove(run.key)


@contextmanager
def running(run: RunRecord) -> Iterator[RunRecord]:
    """As :func:`open_run`, but not the parent of other runs."""
    start_run(run)
    try:
        yield run
    except BaseException as error:
        failed = isinstance(error, Exception)
        end_run(run.key, FAILED if failed else KILLED)
        raise
    finish_run(run)


def start_run(run: RunRecord) -> None:
    """Record that the run begins now."""
    run.key = run.key or uuid.uuid4().hex
    run.started_ms = run.started_ms or now_ms()
    spool.open_run(run.key)
    first = RunRecord(**{**asdict(run), "artifacts": {}, "status": RUNNING, "written_ms": 0})
    record(first)
    run.parent = first.parent


def finish_run(run: RunRecord) -> None:
    """Record the full contents of a started run, and that it has succeeded."""
    spool.close_run(run.key)
    run.status, run.loads, run.written_ms = FINISHED, False, 0
    record(run)


def courier_at_work() -> bool:
    """Whether another process delivers what is recorded here."""
    return bool(_couriers)


@contextmanager
def by_courier() -> Iterator[None]:
    """While the block runs, :func:`record` only writes to disk."""
    _couriers.append(True)
    try:
        yield
    finally:
        _couriers.pop()


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _part(key: str, status: str, **content: Any) -> RunRecord:
    """A record that only adds to the run ``key``."""
    return RunRecord("", "", {}, "", "", key=key, status=status, **content)


def _origin() -> dict[str, str]:
    """Tags that say where a run came from."""
    tags = {
        "code_version": code_version(),
        "host": socket.gethostname(),
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0] or sys.executable).name,
        "mlflow.source.type": "LOCAL",
    }
    commit = git_commit()
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    url = _flow_run_url()
    return tags | ({"prefect_flow_run": url} if url else {})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _flow_run_url() -> str:
    """The URL at which a Prefect server shows the current flow run; empty if there is none."""
    if "prefect" not in sys.modules:
        return ""
    from prefect.runtime import flow_run
    from prefect.settings import get_current_settings

    is_served = bool(get_current_settings().api.url)  # a temporary server shows nothing later
    return (flow_run.ui_url or "") if is_served else ""


def deliver(follow: Callable[[RunRecord, str], None] | None = None) -> str:
    """Give MLflow what waits; returns in one line why it did not take it, or an empty string.

    Runs of killed processes are ended first.

    Args:
        follow: called with each delivered record and its run's id.
    """
    for key in spool.lost_runs():
        spool.close_run(key)
        spool.put(asdict(_ended_late(key)))
    if not spool.waiting():
        return ""
    try:
        spool.deliver(_parse, lambda run: _send(run, follow))
    except Exception as error:  # whatever MLflow raises, training goes on
        return in_one_line(error)
    return ""


def _ended_late(key: str) -> RunRecord:
    run = _part(key, KILLED)
    run.written_ms = run.started_ms = now_ms()
    return run


def flatten(settings: Settings) -> dict[str, Any]:
    """Settings with dotted keys, ``{"model.embedding_dimension": 16}``; each section in a list gets
    its name or index as a key."""
    return dict(flat(settings.model_dump(mode="json")))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings and lists with their dotted keys; see :func:`flatten`."""
    parts: dict[str, Any] = {}
    if isinstance(value, dict):
        parts = value
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        parts = {str(one.get("name", place)): one for place, one in enumerate(value)}
    if not parts:
        yield key, value
    for name, part in parts.items():
        yield from flat(part, f"{key}.{name}" if key else name)


def in_one_line(error: Exception) -> str:
    """The first line of ``error``, without credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])


def connect() -> tuple[Any, str]:
    """The MLflow module, connected to the project's store, and the id of its experiment.

    If the project's folder was moved or copied, the paths in its own store are updated first.

    Raises:
        InputError: params/tracking.yaml is wrong.
        MlflowException: MLflow is away, or the experiment was deleted. MLflow also lets through
            many other errors: of the database, of the artifact store, of a missing driver.
    """
    settings = load_settings(PARAMS / "tracking.yaml", TrackingSettings)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", HTTP_RETRIES)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(settings.wait_seconds)))
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = settings.store
    _check_answers(uri, settings.wait_seconds)
    import mlflow  # takes about 2 s: only if a run is sent

    shown_uri = without_credentials(uri)
    if shown_uri != uri:  # MLflow prints the address of each run with them
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    database = _own_database(uri)
    # One store per URI and process: a relative URI would keep pointing to the first folder
    _set_uri(mlflow, uri if database is None else f"sqlite:///{database}")
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


def _check_answers(uri: str, seconds: float) -> None:
    """Check that something accepts connections at a server's ``uri``, or that no other process has
    locked a file, before importing MLflow, which would wait for 20 s and leave a traceback.

    Raises:
        OSError: nothing does, or one has.
    """
    file = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and file.is_file():
        _check_not_locked(file, seconds)
    parts = urlsplit(uri)
    port = {"http": 80, "https": 443}.get(parts.scheme)
    try:
        port = parts.port or port
    except ValueError:
        return  # MLflow reports what is wrong with it
    if parts.hostname is None or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=seconds).close()
    except OSError as error:
        raise OSError(f"{without_credentials(uri)} does not answer: {error}") from error


def _check_not_locked(file: Path, seconds: float) -> None:
    with closing(sqlite3.connect(file, timeout=seconds)) as store:
        try:
            store.execute("SELECT 1 FROM sqlite_master LIMIT 1")
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise OSError(f"{file} is locked by another process") from error
            # of anything else, MLflow says what it is


def _set_uri(mlflow: Any, uri: str) -> None:
    """Set the URI without leaving it in the environment, where MLflow puts it and it would pass for
    the user's own."""
    name = "MLFLOW_TRACKING_URI"
    before = os.environ.get(name)
    mlflow.set_tracking_uri(uri)
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before


def _own_database(uri: str) -> Path | None:
    """The database file of a store inside the project's folder; None for any other store."""
    path = Path(uri.removeprefix(SQLITE)).resolve()
    is_file = uri.startswith(SQLITE) and "?" not in uri and ":memory:" not in uri
    return path if is_file and path.is_relative_to(Path().resolve()) else None


def _follow_the_project(database: Path, artifacts: str, location: str) -> None:
    """Update the paths in the project's own store to the project's current folder.

    MLflow keeps absolute paths, so a copied project would write into the original folder.

    Args:
        artifacts: the artifact folder, as configured.
        location: the same folder, as recorded in the store.
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
    logger.warning("the project was at %s: MLflow's paths now point to %s", old, new)


def _parse(content: dict[str, Any], entry: Path) -> RunRecord:
    copies = {str(entry / path): folder for path, folder in content.pop("copies")}
    return RunRecord(**{**content, "artifacts": copies})


def _send(run: RunRecord, follow: Callable[[RunRecord, str], None] | None) -> None:
    """Send one record to MLflow; sending it again adds nothing.

    Raises:
        RefusedError: MLflow will never take it.
    """
    mlflow, experiment_id = connect()
    client = mlflow.MlflowClient()
    found = find_run(client, experiment_id, run.key)
    if found is None:
        if not run.name:
            return  # part of a run that somebody has deleted
        found = client.create_run(
            experiment_id,
            start_time=run.started_ms,
            run_name=run.name,
            tags={GROWS_TAG if run.grows else KEY_TAG: run.key},
        )
    run_id = found.info.run_id
    if run.name and run.status == RUNNING and found.info.status != RUNNING:
        client.update_run(run_id, RUNNING)
    try:
        _fill(client, experiment_id, found, run)
    except mlflow.MlflowException as error:
        if error.error_code not in REFUSED_CODES:
            raise
        if run.status != RUNNING:
            client.set_terminated(run_id, FAILED, run.written_ms)
        raise RefusedError(in_one_line(error)) from error
    if follow is not None:
        follow(run, run_id)
    if run.status != RUNNING:
        client.set_terminated(run_id, run.status, run.written_ms)


def _fill(client: Any, experiment_id: str, found: Any, run: RunRecord) -> None:
    """Add the record's contents to the run that was found."""
    run_id = found.info.run_id
    first_step = int(found.data.tags.get(NEXT_STEP_TAG, 0)) if run.grows else 0
    metrics = _metrics(run, first_step)
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
    if run.name:
        _describe(client, experiment_id, found, run)
    for local, folder in run.artifacts.items():
        path = Path(local)
        if path.is_dir():
            client.log_artifacts(run_id, str(path), folder or None)
        else:
            client.log_artifact(run_id, str(path), folder or None)


def _describe(client: Any, experiment_id: str, found: Any, run: RunRecord) -> None:
    """Send a run's parameters, tags and data set."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Param, RunTag

    run_id, known = found.info.run_id, found.data.params
    values = {} if run.grows and known else run.parameters
    new = [
        Param(key, str(value)[:LONGEST_PARAM]) for key, value in values.items() if key not in known
    ]
    for start in range(0, len(new), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_REQUEST])
    tags = {"kind": run.kind, "data_version": run.data_version, **run.tags}
    tags |= {"dataset": run.dataset} if run.dataset else {}
    tags |= {NOTE_TAG: run.description} if run.description else {}
    if run.grows:
        longest = max((len(curve) for curve in run.curves.values()), default=0)
        before = int(found.data.tags.get(NEXT_STEP_TAG, 0))
        tags[NEXT_STEP_TAG] = str(max(before, run.first_step + longest))
    parent = find_run(client, experiment_id, run.parent) if run.parent else None
    tags |= {PARENT_TAG: parent.info.run_id} if parent else {}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items() if value])
    if not run.dataset:
        return
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # two names for a class
        source = resolve_dataset_source(Path(run.source).resolve().as_uri())
    data = MetaDataset(source, name=run.dataset, digest=run.data_version[:36])
    entity = data._to_mlflow_entity()
    context = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(run_id, [DatasetInput(entity, context)])


def find_run(client: Any, experiment_id: str, key: str) -> Any:
    """The MLflow run that records with ``key`` continue; None if there is none yet."""
    for tag in (KEY_TAG, GROWS_TAG) if key else ():
        found = client.search_runs([experiment_id], f"tags.{tag} = '{key}'", max_results=1)
        if found:
            return found[0]
    return None


def open_parent() -> str:
    """The key of the innermost open run of this process; empty if there is none."""
    return _parents[-1] if _parents else ""


def _metrics(run: RunRecord, first_step: int) -> list[Any]:
    """The record's metrics, curves and points, without curve values that the run already has."""
    from mlflow.entities import Metric

    values = [(key, 0, value, run.written_ms) for key, value in run.metrics.items()]
    for key, curve in run.curves.items():
        values += [
            (key, step, value, run.written_ms)
            for step, value in enumerate(curve, start=run.first_step)
            if value is not None and step >= first_step
        ]
    return [
        Metric(NOT_IN_NAMES.sub("_", key), value, time_ms, step)
        for key, step, value, time_ms in (*values, *run.points)
    ]
