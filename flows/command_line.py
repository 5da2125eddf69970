"""What the commands share: options, one clear line for a user's mistake, exit status."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.config import InputError

PARAMS = Path("params")
STATUS_OF_A_MISTAKE = 2


def parse_overrides(description: str) -> dict[str, str]:
    """The ``--set file.key=value`` options of the command line, as ``{"file.key": "value"}``."""
    parser = command_parser(description)
    return overrides_of(parser, parser.parse_args())


def command_parser(description: str) -> argparse.ArgumentParser:
    """A parser of a command's options that knows ``--set``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FILE.KEY=VALUE",
        help="write VALUE into params/FILE.yaml before the run, e.g. --set data.dataset=ebnerd_demo",
    )
    return parser


def overrides_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> dict[str, str]:
    """What ``--set`` was given, as ``{"file.key": "value"}``."""
    pairs = [override.partition("=") for override in given.overrides]
    for key, separator, _ in pairs:
        if not separator:
            parser.error(f"--set {key}: expected FILE.KEY=VALUE")
    return {key: value for key, _, value in pairs}


def apply_overrides(overrides: dict[str, str]) -> None:
    """:func:`tasks.overrides.apply_overrides`, imported where there is something to write."""
    if overrides:
        from tasks.overrides import apply_overrides as write

        write(overrides)


def run_stage_command(stage_flow: Any) -> None:
    """Run one stage as a command: ``python -m flows.<stage>``."""
    from tasks.calling import run_stage
    from tasks.checks import check_before

    def command() -> None:
        apply_overrides(parse_overrides(stage_flow.description))
        check_before(stage_flow.name)
        run_stage(stage_flow)()

    apply_or_exit(command)


def apply_or_exit(command: Callable[[], Any]) -> None:
    """Run ``command``; a user's mistake becomes one line and exit status 2."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback_of_mistakes)
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(STATUS_OF_A_MISTAKE)
    except KeyboardInterrupt:
        sys.exit(130)


def _without_traceback_of_mistakes(record: logging.LogRecord) -> bool:
    """Let a log record pass without the traceback of an InputError: its message says it all."""
    if record.exc_info and isinstance(record.exc_info[1], InputError):
        record.exc_info = None
    return True
