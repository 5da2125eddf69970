"""What the commands share: options, one clear line for a user's mistake, exit status.

Nothing slow is imported here before the options are read, so that ``--help`` answers at once.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from flows.stopping import end, signal_of, stoppable
from recsys.training.quiet import quiet_libraries

PARAMS = Path("params")
STATUS_OF_A_MISTAKE = 2
RUNS = ("prefect.flow_runs", "prefect.task_runs")  # Prefect's loggers
OF_A_FAILURE = ("Finished in state Failed", "Running hook", "Hook ")  # what it says there at INFO


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set file.key=value``; the options' ``overrides`` are pairs (file.key, value)."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        type=_override,
        default=[],
        metavar="FILE.KEY=VALUE",
        help="write VALUE into params/FILE.yaml before the run, "
        "e.g. --set data.dataset=ebnerd_demo",
    )


def _override(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r}: expected FILE.KEY=VALUE")
    return key, value


def apply_overrides(overrides: dict[str, str]) -> None:
    """:func:`tasks.overrides.apply_overrides`, imported where there is something to write.

    Nothing is written while another process works: its settings would change under it.
    """
    if overrides:
        handlers = logging.getLogger().handlers[:]
        from tasks.overrides import apply_overrides as write
        from tasks.project import alone

        # FBGEMM's import gives the root logger a handler, which Prefect would leave in charge
        logging.getLogger().handlers = handlers
        with alone("writing params"):
            write(overrides)


def run_stage_command(stage_flow: Any) -> NoReturn:
    """Run one stage as a command: ``python -m flows.<stage>``."""
    run_program(
        stage_flow.description, add_overrides, lambda options: run_stage_flow(stage_flow, options)
    )


def run_stage_flow(stage_flow: Any, options: argparse.Namespace) -> None:
    """Run a stage's flow with the options of :func:`add_overrides`."""
    from tasks.calling import run_stage
    from tasks.checks import check_before

    apply_overrides(dict(options.overrides))
    check_before(stage_flow.name)
    say_errors_once(with_progress=False)
    run_stage(stage_flow)()


def run_program(
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None],
) -> NoReturn:
    """Read the command line, run, and end this process with the exit status."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    options = parser.parse_args()
    sys.exit(exit_status(lambda: run(options)))


def exit_status(command: Callable[[], Any]) -> int:
    """Run ``command``; its exit status. A user's mistake is one line and status 2, Ctrl-C 130,
    SIGTERM 143."""
    hide_tracebacks_of_mistakes()
    try:
        with stoppable(), quiet_libraries():
            command()
    except BaseException as error:  # Prefect's signals are no Exception
        number = signal_of(error)
        if number is not None:
            return end(number)
        if not _is_a_mistake(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return STATUS_OF_A_MISTAKE
    return 0


def hide_tracebacks_of_mistakes() -> None:
    """Let Prefect log a user's mistake, or a signal, as one line per run."""
    for name in RUNS:
        logging.getLogger(name).addFilter(_once_without_traceback)


def _once_without_traceback(record: logging.LogRecord) -> bool:
    """Let no record of a mistake pass but that of the state in which a run ends, which says it,
    too; of a signal, none with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and signal_of(error) is not None:
        record.exc_info = None
    return error is None or not _is_a_mistake(error)


def say_errors_once(with_progress: bool) -> None:
    """Keep a failure that Prefect logs from the console of a command, whose last line says it; a
    server gets it all the same.

    Args:
        with_progress: show what begins and ends, too.
    """
    from prefect.logging.handlers import PrefectConsoleHandler

    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(_is_no_error if with_progress else _is_warning)


def _is_no_error(record: logging.LogRecord) -> bool:
    tells = record.levelno >= logging.ERROR or record.getMessage().startswith(OF_A_FAILURE)
    return record.name not in RUNS or not tells


def _is_warning(record: logging.LogRecord) -> bool:
    return record.name not in RUNS or record.levelno == logging.WARNING


def _is_a_mistake(error: BaseException | None) -> bool:
    if isinstance(error, SystemExit):  # as --help ends
        return False
    from recsys.config import InputError  # with pydantic: only once something has gone wrong

    return isinstance(error, InputError)
