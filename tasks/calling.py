"""One stage, two doors: a tracked Prefect run where there is a flow run, a plain call elsewhere."""

from collections.abc import Callable
from typing import Any

from prefect import Flow, Task
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings


def call(task: Task[..., Any], *arguments: Any) -> Any:
    """Run ``task`` as a Prefect task inside a flow run, as its plain function elsewhere."""
    return task(*arguments) if FlowRunContext.get() else task.fn(*arguments)


def run_stage(flow: Flow[..., Any]) -> Callable[[], Any]:
    """How a stage's command runs its flow: tracked where a Prefect server is set, plain where none
    is.

    ``dvc repro`` runs each stage as a command of its own; a temporary server for each would cost
    about 12 s a stage.
    """
    return flow if get_current_settings().api.url else flow.fn
