"""The server: probabilities over HTTP, and a change of model without a lost request."""

import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import orjson
import uvicorn
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from recsys.config import InputError, nearest_hint
from recsys.data.encoder_format import RawColumn
from recsys.files import SUMS_FILE, file_hash, in_one_line
from recsys.serving.predictor import Predictor, Probabilities
from recsys.serving.publication import (
    CURRENT_FILE,
    current,
    delta_folder,
    full_folder,
    model_hash,
    read_delta,
)
from recsys.serving.settings import ServeSettings

logger = logging.getLogger(__name__)
MEGABYTE = 1 << 20
BACKLOG = 2048
# Larger requests are predicted outside the event loop, so that others are answered meanwhile
ROWS_INLINE = 64
BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
JSON_TYPES = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "text": {"type": "string"},
    "time": {"type": "string", "format": "date-time"},
}


@dataclass(frozen=True)
class Found:
    """A model that can be served: its version, as named in answers, and its export folder.

    ``number`` is its version number in a publication folder, where deltas lead to it; None
    elsewhere.
    """

    version: str
    folder: Path
    number: int | None = None


Source = Callable[[], Found]  # the model that should be served now


class RefusedError(Exception):
    """A wrong request: the HTTP status and one clear line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Loaded:
    """A model that has been served since ``since`` (seconds since 1970); ``model`` is its
    :func:`recsys.serving.publication.model_hash`."""

    version: str
    predictor: Predictor
    since: float
    number: int | None
    model: str


class Turns:
    """A lock for many readers or one writer; a waiting writer goes next."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers, self._writing = 0, False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """No one writes during the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """No one else reads or writes during the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._writing = True
            self._changed.wait_for(lambda: self._readers == 0)
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


class Models:
    """Holds the served model. A new one replaces it between two predictions; if deltas of a
    publication folder lead to the new one, only the changed rows are written into the tables.

    Raises:
        InputError: ``source`` has no model, or a damaged one.
    """

    def __init__(
        self, source: Source, settings: ServeSettings, registry: CollectorRegistry
    ) -> None:
        self._source, self._settings = source, settings
        self._stop = threading.Event()
        self._switches = Counter(
            "model_switches", "Models loaded after the first", registry=registry
        )
        self._failures = Counter(
            "model_failures", "Failed checks for a new model", registry=registry
        )
        self._deltas = Counter(
            "model_deltas", "Deltas applied to the tables in place", registry=registry
        )
        self._refused, self._turns = "", Turns()
        self.current = self._load(source())

    @contextmanager
    def reading(self) -> Iterator[Loaded]:
        """The served model, which does not change during the block."""
        with self._turns.reading():
            yield self.current

    def _load(self, found: Found) -> Loaded:
        predictor = Predictor.load(found.folder, self._settings.threads)
        _warm(predictor)
        model = model_hash(found.folder)
        return Loaded(found.version, predictor, time.time(), found.number, model)

    def _follow(self, found: Found) -> bool:
        """Apply the deltas between the present model and ``found``; returns False, without changing
        anything, if there is a gap.

        Raises:
            InputError: a delta is damaged; nothing has changed.
        """
        now = self.current
        if now.number is None or found.number is None or found.number <= now.number:
            return False
        numbers = range(now.number + 1, found.number + 1)
        folders = [delta_folder(found.folder.parent, number) for number in numbers]
        if not all(folder.is_dir() for folder in folders):
            return False
        predictor, model = now.predictor, now.model
        deltas = [read_delta(folder) for folder in folders]
        for delta in deltas:
            fits = predictor.tables.takes(delta.rows, delta.values, delta.scales)
            if delta.base != model or not fits:
                return False
            predictor = predictor.changed(delta.folder, self._settings.threads)
            model = delta.model
        _warm(predictor)
        for delta in deltas:
            predictor.tables.own(delta.rows)
        with self._turns.writing():
            for delta in deltas:
                predictor.tables.put(delta.rows, delta.values, delta.scales)
            self.current = Loaded(found.version, predictor, time.time(), found.number, model)
        self._deltas.inc(len(deltas))
        return True

    def look(self) -> None:
        """Load the source's model if it is new; if it cannot be loaded, the present one stays."""
        try:
            found = self._source()
            if found.version == self.current.version:
                return
            try:
                followed = self._follow(found)
            except Exception as error:  # a delta is damaged; the whole model may be fine
                logger.warning("%s: loading the whole model: %s", found.version, in_one_line(error))
                followed = False
            if not followed:
                self.current = self._load(found)
            self._switches.inc()
            self._refused = ""
            logger.warning("now serving %s", found.version)
        except Exception as error:  # whatever a registry or a half-written folder raises
            self._failures.inc()
            reason = in_one_line(error)
            if reason != self._refused:  # logged once, not every few seconds
                logger.warning("keeps serving %s: %s", self.current.version, reason)
            self._refused = reason

    def watch(self) -> None:
        """:meth:`look` every ``poll_seconds`` until :meth:`stop`."""
        while not self._stop.wait(self._settings.poll_seconds):
            self.look()

    def stop(self) -> None:
        """End :meth:`watch`."""
        self._stop.set()


def folder_source(folder: Path) -> Source:
    """A source for an export folder, identified by the hash of its checksums: another export in its
    place is a new model."""

    def find() -> Found:
        sums = folder / SUMS_FILE
        if not sums.is_file():
            raise InputError(f"{sums}: no such file; expected the export folder of a student")
        return Found(f"{folder.as_posix()}@{file_hash(sums)[:12]}", folder)

    return find


def publication_source(folder: Path) -> Source:
    """A source for the newest version in a publication folder."""

    def find() -> Found:
        now = current(folder)
        if now is None:
            raise InputError(f"{folder / CURRENT_FILE}: no such file; nothing is published there")
        version = f"{folder.name}/{now.version}@{now.model[:12]}"
        return Found(version, full_folder(folder, now.version), now.version)

    return find


def _warm(predictor: Predictor) -> None:
    """Do once what is slow the first time, before the first request."""
    examples = predictor.example_rows()
    if examples:
        predictor.predict_tasks(examples)


def create_app(source: Source, settings: ServeSettings) -> FastAPI:
    """The application with /predict, /rank, /health, /metrics and /docs.

    Raises:
        InputError: ``source`` has no model, or a damaged one.
    """
    registry = CollectorRegistry()
    models = Models(source, settings, registry)
    requests = Counter("requests", "Requests answered", ["path", "status"], registry=registry)
    seconds = Histogram(
        "request_seconds", "Time to answer", ["path"], buckets=BUCKETS, registry=registry
    )
    rows_predicted = Counter("rows", "Rows predicted", registry=registry)
    since = Gauge("model_since_seconds", "When the model was loaded", registry=registry)
    since.set_function(lambda: models.current.since)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watcher = threading.Thread(target=models.watch, name="models", daemon=True)
        watcher.start()
        yield
        models.stop()

    app = FastAPI(title="towerflow", version=models.current.version, lifespan=lifespan)

    async def answered(
        request: Request, predict: Callable[[Loaded, dict[str, Any]], tuple[int, Any]]
    ) -> Response:
        began, path = time.perf_counter(), request.url.path

        def by_one_model(body: dict[str, Any]) -> tuple[str, int, Any]:
            with models.reading() as model:
                return model.version, *predict(model, body)

        try:
            body = await _body(request, int(settings.largest_body_mb * MEGABYTE))
            if _rows_in(body) > ROWS_INLINE:
                version, count, answer = await to_thread.run_sync(by_one_model, body)
            else:
                version, count, answer = by_one_model(body)
            rows_predicted.inc(count)
            status, content = 200, {"model": version, **answer}
        except RefusedError as error:
            status, content = error.status, {"error": error.message}
        except InputError as error:
            status, content = 422, {"error": str(error)}
        except Exception:
            logger.exception("%s failed", path)
            status, content = 500, {"error": "the server failed at this request; its log says why"}
        requests.labels(path, str(status)).inc()
        seconds.labels(path).observe(time.perf_counter() - began)
        return Response(
            orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
            status,
            media_type="application/json",
        )

    def predicted(model: Loaded, body: dict[str, Any]) -> tuple[int, Any]:
        _check_keys(body, ["rows", "columns"])
        if "columns" in body:
            columns = _checked_columns(body, settings)
            _check_columns([columns], model.predictor, settings)
            found = model.predictor.predict_tasks(columns)
        else:
            rows = _checked_rows(body, "rows", settings)
            _check_columns(rows, model.predictor, settings)
            found = model.predictor.predict_tasks(rows)
        return _rows_in(body), {"probabilities": _plain(found)}

    def ranked(model: Loaded, body: dict[str, Any]) -> tuple[int, Any]:
        _check_keys(body, ["shared", "candidates"])
        candidates = _checked_rows(body, "candidates", settings)
        shared = body.get("shared", {})
        if not isinstance(shared, dict):
            raise RefusedError(422, "'shared' is not an object; expected columns by name")
        _check_columns([shared, *candidates], model.predictor, settings)
        found = _plain(model.predictor.rank(shared, candidates))
        first = found[model.predictor.tasks[0]]
        order = sorted(range(len(first)), key=lambda place: -first[place])
        return len(candidates), {"probabilities": found, "order": order}

    @app.post("/predict", openapi_extra=_documented(models.current.predictor, "predict"))
    async def predict(request: Request) -> Response:
        """Calibrated probabilities of raw rows, by task."""
        return await answered(request, predicted)

    @app.post("/rank", openapi_extra=_documented(models.current.predictor, "rank"))
    async def rank(request: Request) -> Response:
        """Rank candidates for one user and context: probabilities, and their order, best first."""
        return await answered(request, ranked)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Which model is served and since when, and its inputs and outputs."""
        model = models.current
        predictor = model.predictor
        return {
            "status": "ok",
            "model": model.version,
            "since": model.since,
            "domain": predictor.domain,
            "tasks": predictor.tasks,
            "columns": {
                one.name: {"type": one.type, "list": one.is_list, "required": not one.optional}
                for one in predictor.raw_columns
            },
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    app.state.models = models
    return app


def serve(source: Source, settings: ServeSettings) -> NoReturn:
    """Serve until stopped.

    Raises:
        InputError: there is no model, or the port is in use.
        SystemExit: when the server has ended.
    """
    app = create_app(source, settings)
    # Named TCP, or asyncio leaves Nagle on, which costs 40 ms per answer
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(BACKLOG)  # from here on requests wait until uvicorn accepts them
    except OSError as error:
        raise InputError(
            f"{settings.where('port')}: {settings.host}:{settings.port}: {error.strerror}; choose "
            f"another with --port"
        ) from error
    host, port = listening.getsockname()[:2]
    print(f"serves {app.version} on http://{host}:{port} (/docs shows how)", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
    raise SystemExit(0)


async def _body(request: Request, limit: int) -> dict[str, Any]:
    told = request.headers.get("content-length", "0")
    too_large = RefusedError(413, f"the body is larger than {limit} bytes, serve.largest_body_mb")
    if told.isdigit() and int(told) > limit:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_large
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RefusedError(422, "the body is not a JSON object; GET /docs shows one")
    return values


def _check_keys(body: Mapping[str, Any], known: list[str]) -> None:
    wrong = next((key for key in body if key not in known), None)
    if wrong is not None:
        raise RefusedError(422, f"unknown key {wrong!r}; {nearest_hint(wrong, known)}")


def _checked_rows(
    body: Mapping[str, Any], key: str, settings: ServeSettings
) -> list[dict[str, Any]]:
    rows = body.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RefusedError(422, f"{key!r} is missing or not a list of objects; GET /docs shows one")
    if not rows:
        raise RefusedError(422, f"{key!r} is empty; give at least one")
    if len(rows) > settings.largest_batch:
        raise RefusedError(
            413, f"{key!r} has {len(rows)}; at most {settings.largest_batch}, serve.largest_batch"
        )
    return rows


def _checked_columns(body: Mapping[str, Any], settings: ServeSettings) -> dict[str, list[Any]]:
    columns = body["columns"]
    if not isinstance(columns, dict) or not all(isinstance(one, list) for one in columns.values()):
        raise RefusedError(422, "'columns' is not an object of lists; GET /docs shows one")
    if "rows" in body:
        raise RefusedError(422, "'rows' and 'columns' are both there; give one")
    count = _rows_in(body)
    if not count:
        raise RefusedError(422, "'columns' is empty; give at least one row")
    if count > settings.largest_batch:
        raise RefusedError(
            413,
            f"'columns' has {count} rows; at most {settings.largest_batch}, serve.largest_batch",
        )
    return columns


def _rows_in(body: Mapping[str, Any]) -> int:
    """The number of rows in a request body, in any of its forms."""
    columns = body.get("columns")
    given = columns.values() if isinstance(columns, dict) else body.values()
    return max((len(one) for one in given if isinstance(one, list)), default=0)


def _check_columns(
    rows: list[dict[str, Any]], predictor: Predictor, settings: ServeSettings
) -> None:
    if settings.unknown_columns == "ignore":
        return
    unknown = set().union(*rows) - set(predictor.format.read_names)
    if unknown:
        wrong = next(name for row in rows for name in row if name in unknown)
        hint = nearest_hint(wrong, [column.name for column in predictor.raw_columns])
        raise RefusedError(422, f"unknown column {wrong!r}; {hint}")


def _plain(found: Probabilities) -> dict[str, list[float]]:
    return {task: values.tolist() for task, values in found.items()}


def _documented(predictor: Predictor, path: str) -> dict[str, Any]:
    """The OpenAPI description of a request: the columns' types, and example rows of the log."""
    row = {
        "type": "object",
        "properties": {column.name: _type(column) for column in predictor.raw_columns},
        "required": [column.name for column in predictor.raw_columns if not column.optional],
    }
    examples = predictor.example_rows()
    rows = {"type": "array", "items": row}
    if path == "predict":
        lists = {
            "type": "object",
            "description": "instead of rows: a list per column, which is read faster",
        }
        schema = {"type": "object", "properties": {"rows": rows, "columns": lists}}
        example: dict[str, Any] = {"rows": examples}
    else:
        columns = {
            "type": "object",
            "description": "columns with the same value for all candidates",
        }
        schema = {"type": "object", "properties": {"shared": columns, "candidates": rows}}
        example = {"shared": {}, "candidates": examples}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _type(column: RawColumn) -> dict[str, Any]:
    found = JSON_TYPES[column.type]
    return {"type": "array", "items": found} if column.is_list else found
