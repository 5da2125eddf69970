"""What Prefect's interface shows of a run: a name that says what it works on, and its result."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.tasks import exponential_backoff

from recsys.config import InputError, read_yaml
from recsys.files import BusyError, UnreachableError
from tasks.project import PARAMS

# Another process at work will end, a store will answer; a mistake stays one, however often it is
# tried
LATER: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 1.0,
}


def flow_run_name(what: str) -> Callable[[], str]:
    """A name for the flow runs of ``what``: the data set and the students as they are set."""

    def name() -> str:
        try:
            data, students = (
                read_yaml((PARAMS / f"{file}.yaml").read_text(), file)
                for file in ("data", "students")
            )
            names = " and ".join(str(student["name"]) for student in students["students"])
            return f"{what}: {data['dataset']}, students {names}"
        except (InputError, OSError, KeyError, TypeError):  # the run itself says what is wrong
            return what

    return name


def _failed_with(kind: type[InputError]) -> Callable[[Any, Any, Any], Coroutine[Any, Any, bool]]:
    """A condition of Prefect's: whether a task has failed with an error of this kind."""

    async def failed(task: Any, task_run: Any, state: Any) -> bool:
        try:
            await state.result()
        except kind:
            return True
        except BaseException:
            return False
        return False

    return failed


is_busy = _failed_with(BusyError)  # another process is at it
is_unreachable = _failed_with(UnreachableError)  # a store does not answer


def show_report(folder: Path) -> None:
    """Show the evaluation in ``folder`` beside the flow run, if this is in one: its table, and a
    link to its page."""
    if FlowRunContext.get() is None:
        return
    create_markdown_artifact(
        key="comparison",
        markdown=(folder / "table.md").read_text(),
        description="All models on the same rows, predicted before they learnt from them.",
    )
    create_link_artifact(
        key="report",
        link=(folder / "report.html").resolve().as_uri(),
        link_text="The report with its figures",
        description="A file of the machine that has run this; MLflow has it in *comparison*.",
    )
