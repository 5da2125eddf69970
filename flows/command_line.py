"""Shared by all commands: options, one clear line for a user's mistake, exit status.

No slow import happens here before the options are parsed, so ``--help`` answers at once.
"""

import argparse
import errno
import logging
import os
import re
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
# Faults of the machine, which a line explains better than a traceback
REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "make it writable",
    errno.EACCES: "give this user the permission",
    errno.EPERM: "give this user the permission",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close files of other processes",
}
NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)  # Rust's; Arrow's


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set file.key=value``, which fills the options' ``overrides`` with pairs (file.key,
    value)."""
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
    """Call :func:`tasks.overrides.apply_overrides`, imported only if there is something to write.

    Nothing is written while another process is running: its settings would change under it.
    """
    if overrides:
        handlers = logging.getLogger().handlers[:]
        from tasks.overrides import apply_overrides as write
        from tasks.project import alone

        # Importing FBGEMM adds a handler to the root logger, which Prefect would leave in place
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
    """Run ``command`` and return its exit status: 2 after a user's mistake or a fault of the
    machine (a full disk, say), which is printed in one line, 130 after Ctrl-C, 143 after SIGTERM.
    """
    hide_tracebacks_of_mistakes()
    try:
        with stoppable(), quiet_libraries():
            command()
    except BaseException as error:  # Prefect's signals are not Exceptions
        number = signal_of(error)
        if number is not None:
            return end(number)
        line = str(error) if _is_a_mistake(error) else _fault_of_the_machine(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return STATUS_OF_A_MISTAKE
    return 0


def hide_tracebacks_of_mistakes() -> None:
    """Let Prefect log a user's mistake, or a signal, as one line per run."""
    for name in RUNS:
        logging.getLogger(name).addFilter(_once_without_traceback)


def _once_without_traceback(record: logging.LogRecord) -> bool:
    """Whether to log a record. For a user's mistake or a fault of the machine only the record of
    the run's final state passes, which contains the message; for a signal, only records without a
    traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and signal_of(error) is not None:
        record.exc_info = None
    return error is None or not (_is_a_mistake(error) or _fault_of_the_machine(error))


def say_errors_once(with_progress: bool) -> None:
    """Keep failures that Prefect logs off the console, since the command's last line reports them;
    a server still gets them.

    Args:
        with_progress: also show what begins and ends.
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
    if isinstance(error, SystemExit):  # --help ends this way
        return False
    from recsys.config import InputError  # imports pydantic: only after something has gone wrong

    return isinstance(error, InputError)


def _fault_of_the_machine(error: BaseException | None) -> str | None:
    """A line for an error that the operating system caused, perhaps below others; None for all
    others."""
    while error is not None:
        number, place = None, None
        if isinstance(error, OSError) and error.errno is not None:
            number, place = error.errno, error.filename
        elif (found := NUMBER.search(str(error))) is not None:
            number = int(found[1] or found[2])
        if number in REMEDIES:
            where = place if place is not None else Path.cwd()
            return (
                f"{where}: {os.strerror(number)}; {REMEDIES[number]}, then run the same command "
                f"again"
            )
        error = error.__cause__
    return None
