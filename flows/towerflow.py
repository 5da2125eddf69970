"""The command ``towerflow``. A new subcommand is one entry in COMMANDS."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from flows.command_line import PARAMS, STATUS_OF_A_MISTAKE, exit_status
from recsys import __version__

DESCRIPTION = "From raw click logs to small, served ranking models."


@dataclass(frozen=True)
class Command:
    """A subcommand. Its module, imported only when needed, has ``add_arguments(parser)`` and
    ``run(options)``; slow imports (Prefect, torch) belong in ``run``.

    ``defaults`` override those of the module's own options. A subcommand that needs the project is
    refused where there is no folder params/.
    """

    name: str
    help: str
    module: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs_project: bool = True


def _stage(name: str, what: str) -> Command:
    return Command(name, what, "flows.stage", {"stage": name})


HARDWARE = {"hardware_folder": PARAMS / "hardware"}
# By title, in the order in which a user needs them.
COMMANDS: dict[str, tuple[Command, ...]] = {
    "the pipeline": (Command("run", "run all stages that are not up to date", "flows.run"),),
    "one stage of it": (
        _stage("ingest", "cut raw logs into windows of event time: data/windows"),
        _stage("baselines", "train what the students have to beat: models/baselines"),
        _stage("partition", "decide which features go into which tower: models/partition"),
        _stage("teacher", "train the teacher in time order, with snapshots: models/teacher"),
        _stage("augment", "log the teacher's scores for later windows: data/scores"),
        _stage("students", "train the students, plain and distilled: models/students"),
        _stage("evaluate", "compare the students, window by window: reports/evaluation"),
        _stage("register", "register each student's better arm: reports/registration.json"),
    ),
    "what came out": (
        Command("compare", "two runs, arms or registered models on the same rows", "flows.compare"),
        Command(
            "serve",
            "serve a student's champion or an export folder over HTTP",
            "flows.serve",
            needs_project=False,
        ),
        Command(
            "score",
            "turn Parquet files of raw rows into probabilities",
            "flows.score",
            needs_project=False,
        ),
    ),
    "as the log grows": (
        Command(
            "stream", "process new windows: evaluate, score, train, publish", "flows.stream_command"
        ),
        Command("snapshots", "list the teacher's snapshots, or withdraw one", "flows.snapshots"),
    ),
    "your own log": (
        Command(
            "describe",
            "look at a log and draft a YAML for params/datasets",
            "recsys.commands.describe",
            needs_project=False,
        ),
        Command(
            "crosses", "choose pairs of columns by their gain on early windows", "flows.crosses"
        ),
        Command("tune", "search for better settings on early windows, write params/", "flows.tune"),
    ),
    "before you train": (
        Command(
            "plan",
            "plan how to shard each table on a cluster, and where",
            "recsys.commands.plan",
            HARDWARE,
            needs_project=False,
        ),
        Command(
            "advise",
            "advise flat or towers on a cluster, how many, how narrow, and why",
            "recsys.commands.advise",
            needs_project=False,
        ),
        Command(
            "calibrate",
            "measure this machine for plan --hardware cpu",
            "recsys.commands.calibrate",
            HARDWARE,
        ),
    ),
    "servers": (
        Command(
            "deployments", "offer the pipeline and the stream as deployments", "flows.deployments"
        ),
        Command("ui", "open the user interface of MLflow or Prefect", "flows.ui"),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return its exit status: 2 for a mistake, 130 for Ctrl-C.

    Raises:
        SystemExit: with ``--help``, or for an option that argparse refuses.
    """
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return STATUS_OF_A_MISTAKE
    given = parser.parse_args(arguments)
    return exit_status(lambda: _run(given.command, given.arguments))


def _parser() -> argparse.ArgumentParser:
    lines = [DESCRIPTION]
    for title, commands in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {one.name:<12} {one.help}" for one in commands)]
    parser = argparse.ArgumentParser(
        prog="towerflow",
        usage="towerflow COMMAND [OPTION ...]",
        description="\n".join(lines),
        epilog="towerflow COMMAND --help shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"towerflow {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _run(name: str, arguments: list[str]) -> None:
    command = _command(name)
    options = parser_of(command).parse_args(arguments)
    if command.needs_project:
        _check_project()
    import_module(command.module).run(options)


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser of a subcommand's options."""
    parser = argparse.ArgumentParser(prog=f"towerflow {command.name}", description=command.help)
    import_module(command.module).add_arguments(parser)
    parser.set_defaults(**command.defaults)
    return parser


def _command(name: str) -> Command:
    by_name = {one.name: one for commands in COMMANDS.values() for one in commands}
    if name not in by_name:
        from recsys.config import InputError, nearest_hint

        raise InputError(f"{name}: no such command; {nearest_hint(name, by_name)}")
    return by_name[name]


def _check_project() -> None:
    if not PARAMS.is_dir():
        from recsys.config import InputError

        raise InputError(
            f"{Path.cwd()}: there is no folder {PARAMS} here; start towerflow in the project's root"
        )


if __name__ == "__main__":
    sys.exit(main())
