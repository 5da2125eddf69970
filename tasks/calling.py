"""Run a stage as a tracked Prefect run inside a flow run, and as a plain call elsewhere.

Prefect's server may go away at any time. Work continues; its end is reported late, or a message
says that the server does not show it.
"""

import logging
import ssl
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, wraps
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, Task
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.settings import (
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Completed, Failed, Pending, Running
from prefect.task_engine import TaskRunTimeoutError
from prefect.tasks import exponential_backoff

from recsys.config import InputError, load_settings
from recsys.files import UnreachableError
from tasks.prefect_settings import PrefectSettings
from tasks.project import PARAMS

logger = logging.getLogger(__name__)
ANSWER_SECONDS = 5.0
LATE_TAG = "reported late"
# What Prefect logs for each event and log line that it cannot send to an unreachable server
COMPLAINING = ("prefect.events.clients", "prefect._internal.concurrency")


@dataclass
class _Work:
    """The state of one call of a flow's function.

    Attributes:
        run_id: id of the flow run on the server; None if there is none.
    """

    flow: Flow[..., Any]
    run_id: UUID | None = None
    began: datetime | None = None
    ended: datetime | None = None
    result: Any = None
    error: BaseException | None = None

    def do(self, *arguments: Any, **named: Any) -> Any:
        context = FlowRunContext.get()
        if context and context.flow and context.flow_run and context.flow.name == self.flow.name:
            self.run_id = context.flow_run.id
        self.began = datetime.now(UTC)
        try:
            self.result = self.flow.fn(*arguments, **named)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended = datetime.now(UTC)
        return self.result


_unreported: list[_Work] = []
_depth: list[str] = []  # flows running in this process, outermost first


def call(task: Task[..., Any], *arguments: Any) -> Any:
    """Run ``task`` as a Prefect task inside a flow run, with the timeout and retries of
    params/prefect.yaml; as its plain function elsewhere.

    Raises:
        InputError: the task took longer than the timeout.
    """
    if not is_tracked():
        return task.fn(*arguments)
    where = PARAMS / "prefect.yaml"
    settings = load_settings(where, PrefectSettings)
    hours = settings.timeout_hours
    limited = retried(task, settings).with_options(
        timeout_seconds=None if hours is None else 3600 * hours
    )
    try:
        return limited(*arguments)
    except TaskRunTimeoutError as error:
        raise InputError(
            f"{where}: key 'timeout_hours': {task.name} took longer than {hours:g} hours and was "
            "stopped; the next run resumes there"
        ) from error
    except ConcurrencySlotAcquisitionError:  # before it begins
        if is_tracked():
            raise
        return task.fn(*arguments)


def retried(task: Task[..., Any], settings: PrefectSettings) -> Task[..., Any]:
    """``task`` with the retries of ``settings``, where it has a condition for them."""
    return task.with_options(
        retries=settings.retries if task.retry_condition_fn else 0,
        retry_delay_seconds=exponential_backoff(settings.retry_seconds),
        retry_jitter_factor=1.0,
    )


def is_tracked() -> bool:
    """Whether this code is inside a flow run whose server answers."""
    context = FlowRunContext.get()
    return context is not None and _answers(str(context.client.api_url))


def run_stage(flow: Flow[..., Any]) -> Callable[[], Any]:
    """How a stage's command runs its flow: tracked if a Prefect server is set, as a plain call
    otherwise.

    ``dvc repro`` runs each stage as a command of its own; a temporary server for each would cost
    about 12 s per stage.
    """
    return (lambda: run_flow(flow)) if get_current_settings().api.url else flow.fn


def run_flow(flow: Flow[..., Any], *arguments: Any) -> Any:
    """Run ``flow``, tracked as long as Prefect's server answers; its work runs exactly once,
    whatever happens to the server.

    If the server misses the end of a run, it is told when the outermost flow of this process ends;
    if it does not answer then either, a line says so.
    """
    work = _Work(flow)

    @wraps(flow.fn)
    def do(*given: Any, **named: Any) -> Any:
        return work.do(*given, **named)

    watched = copy(flow)
    watched.fn = do
    # A flow waits up to a second for the thread of its heartbeats to end. Inside another one, its
    # process is alive as long as that one's is.
    quiet: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if _depth else {}
    _depth.append(flow.name)
    try:
        with temporary_settings(quiet):
            return _run(watched, work, arguments)
    finally:
        _depth.pop()
        if not _depth:
            report_late()


def _run(watched: Flow[..., Any], work: _Work, arguments: tuple[Any, ...]) -> Any:
    server = _server()
    if server is None or _answers(server):
        try:
            return watched(*arguments)
        except Exception as error:
            if work.error is None and not _is_away(error, server):
                raise
            if work.ended is None:  # the server was away before the work began
                return _run_unseen(work, arguments, server)
            if error is not work.error:
                _note(work, server)
            if work.error is not None:
                raise work.error from None
            return work.result
    return _run_unseen(work, arguments, server)


def _run_unseen(work: _Work, arguments: tuple[Any, ...], server: str | None) -> Any:
    try:
        return work.do(*arguments)
    finally:
        _note(work, server)


def _note(work: _Work, server: str | None) -> None:
    """Note that the server missed the end of ``work``, with a warning the first time."""
    if not _unreported:
        logging.raiseExceptions = False  # nor complain about each log line that cannot be sent
        logger.warning(
            "Prefect's server at %s does not answer; %s continues without it", server, _depth[0]
        )
    _unreported.append(work)


def report_late() -> None:
    """Tell Prefect's server about the runs whose end it missed. If it does not answer and no
    enclosing :func:`run_flow` will try again, log which runs these are."""
    if not _unreported:
        return
    server = _server()
    names = ", ".join(work.flow.name for work in _unreported)
    try:
        if server is None or not _answers(server):
            if _depth:
                return
            raise httpx.ConnectError("does not answer")
        for work in _unreported:
            _report(work)
        logger.warning("Prefect's server is back; reported late: %s", names)
    except Exception as error:  # the work is done
        logger.warning(
            "Prefect's server at %s does not show the end of: %s (%s)", server, names, error
        )
    _unreported.clear()


def _report(work: _Work) -> None:
    message = f"Prefect's server did not answer when this ended ({work.ended:%H:%M:%S} UTC)"
    if work.error is None:
        state = Completed(message=message, timestamp=work.ended)
    else:
        state = Failed(message=f"{work.error} ({message})", timestamp=work.ended)
    with get_client(sync_client=True) as client:
        run_id = work.run_id
        if run_id is None:
            named = work.flow.flow_run_name
            name = named() if callable(named) else named
            run = client.create_flow_run(work.flow, name=name, tags=[LATE_TAG], state=Pending())
            run_id = run.id
            client.set_flow_run_state(run_id, Running(timestamp=work.began), force=True)
        client.set_flow_run_state(run_id, state, force=True)


def tell_server(event: str, resource: str) -> None:
    """Send Prefect's server an event for the resource with this id.

    Raises:
        InputError: no server is set.
        UnreachableError: the server does not answer.
    """
    server = get_current_settings().api.url
    if not server:
        raise InputError(
            "no Prefect server is set; for example  prefect config set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    if not _answers(server):
        raise UnreachableError(f"Prefect's server at {server} does not answer")
    emit_event(event, {"prefect.resource.id": resource})


def _server() -> str | None:
    """The URL of the current flow run's server, else of the one in the settings."""
    context = FlowRunContext.get()
    return get_current_settings().api.url if context is None else str(context.client.api_url)


def _is_away(error: Exception, server: str | None) -> bool:
    return isinstance(error, httpx.HTTPError) or (server is not None and not _answers(server))


def _answers(server: str) -> bool:
    """Whether a server answers at the URL ``server``, with any response."""
    is_checked = server.startswith("https") and not PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value()
    verify = _trusted(PREFECT_API_SSL_CERT_FILE.value()) if is_checked else False
    try:
        httpx.get(f"{server.rstrip('/')}/health", timeout=ANSWER_SECONDS, verify=verify)
    except httpx.HTTPError:
        return False
    return True


@cache
def _trusted(certificates: str | None) -> ssl.SSLContext:
    """Read once: reading takes 30 ms, and the server is asked before every task."""
    return ssl.create_default_context(cafile=certificates)


def _is_said_here(record: logging.LogRecord) -> bool:
    """Whether to show a Prefect log record: not if it is a long report that the server is away or
    that a task timed out."""
    error = record.exc_info[1] if record.exc_info else None
    return not (
        isinstance(error, httpx.HTTPError | TaskRunTimeoutError)
        or record.name in COMPLAINING
        or "Finished in state Running" in record.getMessage()  # its end could not be reported
    )


for _name in (*COMPLAINING, "prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_is_said_here)
