"""What Prefect's interface shows about a run: a telling name, and the result."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.utilities.urls import url_for

from recsys.config import InputError, load_settings, read_yaml
from recsys.files import BusyError, UnreachableError, in_one_line
from tasks.calling import is_tracked
from tasks.prefect_settings import PrefectSettings
from tasks.project import PARAMS

logger = logging.getLogger(__name__)


def flow_run_name(what: str) -> Callable[[], str]:
    """A name for the flow runs of ``what``: the data set and students in the current settings."""

    def name() -> str:
        try:
            data, students = (
                read_yaml((PARAMS / f"{file}.yaml").read_text(), file)
                for file in ("data", "students")
            )
            names = " and ".join(str(student["name"]) for student in students["students"])
            return f"{what}: {data['dataset']}, students {names}"
        except (InputError, OSError, KeyError, TypeError):  # the run itself reports what is wrong
            return what

    return name


def _failed_with(kind: type[InputError]) -> Callable[[Any, Any, Any], Coroutine[Any, Any, bool]]:
    """A Prefect retry condition: whether a task failed with an error of this kind."""

    async def failed(task: Any, task_run: Any, state: Any) -> bool:
        try:
            await state.result()
        except kind:
            return True
        except BaseException:
            return False
        return False

    return failed


is_busy = _failed_with(BusyError)  # another process holds the lock
is_unreachable = _failed_with(UnreachableError)  # a store does not answer


def tell_of_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect's hook for a failed flow run: notify the block of params/prefect.yaml, unless the run
    is part of another one that fails with it."""
    name = load_settings(PARAMS / "prefect.yaml", PrefectSettings).failure_block
    if name is None or flow_run.parent_task_run_id is not None:
        return
    try:
        block: Any = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise InputError("it is not a notification block")
        said = f"{flow_run.name}: {state.message}\n{url_for(flow_run) or ''}"
        told = block.notify(said, subject=f"{flow.name} has failed")
        if isinstance(told, Coroutine):  # a user's own block may be async, as the base class allows
            asyncio.run(told)
    except Exception as error:  # the run's own failure is what counts
        logger.warning(
            "%s: key 'failure_block': %s was not told: %s",
            PARAMS / "prefect.yaml",
            name,
            in_one_line(error),
        )


def show_report(folder: Path) -> None:
    """Show the evaluation in ``folder`` (its table, and a link to its page) with the current flow
    run, if there is one whose server answers."""
    if not is_tracked():
        return
    create_markdown_artifact(
        key="comparison",
        markdown=(folder / "table.md").read_text(),
        description="All models on the same rows, predicted before training on them.",
    )
    create_link_artifact(
        key="report",
        link=(folder / "report.html").resolve().as_uri(),
        link_text="The report with its figures",
        description="A file on the machine that ran this; MLflow has it in the run *comparison*.",
    )
