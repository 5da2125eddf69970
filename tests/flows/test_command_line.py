"""The command line writes parameters as asked, all or none, and says what is wrong in one line."""

import argparse
import errno
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import PrefectConsoleHandler
from torch.distributed.elastic.multiprocessing.api import SignalException

from flows.command_line import (
    add_overrides,
    exit_status,
    hide_tracebacks_of_mistakes,
    say_errors_once,
)
from flows.stopping import signal_of
from recsys.config import InputError


def test_a_mistake_becomes_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError("params/data.yaml: no such file")

    assert exit_status(fail) == 2
    assert capsys.readouterr().err == "error: params/data.yaml: no such file\n"


def write_to_a_full_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def fail_as_polars_does() -> None:
    raise pl.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)")


def fail_below_another() -> None:
    try:
        write_to_a_full_disk()
    except OSError as error:
        raise RuntimeError("a rank failed") from error


@pytest.mark.parametrize(
    "fail",
    [write_to_a_full_disk, fail_as_polars_does, fail_below_another],
    ids=lambda f: f.__name__,
)
def test_a_full_disk_is_one_line_and_status_2(
    fail: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(fail) == 2
    line = "No space left on device; make room, then run the same command again"
    assert capsys.readouterr().err == f"error: {Path.cwd()}: {line}\n"


def test_a_fault_of_the_machine_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), ".work/project.lock")

    assert exit_status(fail) == 2
    line = ".work/project.lock: Read-only file system; make it writable, then run"
    assert line in capsys.readouterr().err


def test_a_missing_file_is_no_fault_of_the_machine() -> None:
    with pytest.raises(FileNotFoundError):
        exit_status(lambda: Path("/proc/none").write_text("x"))


@pytest.mark.parametrize(
    ("number", "line", "status"),
    [(signal.SIGINT, "stopped by Ctrl-C\n", 130), (signal.SIGTERM, "stopped by SIGTERM\n", 143)],
)
def test_a_signal_is_one_line_and_its_status(
    number: signal.Signals, line: str, status: int
) -> None:
    code = (
        "import sys, time; from flows.command_line import exit_status; "
        "sys.exit(exit_status(lambda: (print('ready', flush=True), time.sleep(60))))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (said, process.returncode) == (line, status)


def test_a_command_that_does_not_end_by_itself_is_ended_with_what_it_has_started() -> None:
    code = (
        "import subprocess, sys, time, flows.stopping as s; s.LONGEST_S = 0.5\n"
        "from flows.command_line import exit_status\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "def stay():\n"
        "    while True:\n"
        "        try:\n"
        "            print(child.pid, flush=True)\n"
        "            time.sleep(60)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"
        "exit_status(stay)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    end = time.monotonic() + 10  # killed, it may take a moment to go
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (KeyboardInterrupt(), signal.SIGINT),
        (SignalException("the agent was stopped", signal.SIGTERM), signal.SIGTERM),
        (TerminationSignal(signal.SIGTERM), signal.SIGTERM),
        (ValueError("15"), None),
    ],
)
def test_the_signal_is_known_whoever_has_caught_it(
    error: BaseException, number: int | None
) -> None:
    assert signal_of(error) == number


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)


def test_an_override_without_a_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(["--set", "data.dataset"])
    assert exit_info.value.code == 2
    assert "'data.dataset': expected FILE.KEY=VALUE" in capsys.readouterr().err


def test_a_value_may_hold_an_equals_sign() -> None:
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    given = parser.parse_args(["--set", "data.root=/logs/day=1", "--set", "train.seed=2"])
    assert given.overrides == [("data.root", "/logs/day=1"), ("train.seed", "2")]


def failure(name: str, level: int, error: Exception | None = None) -> logging.LogRecord:
    told = None if error is None else (type(error), error, None)
    return logging.LogRecord(name, level, "", 0, "it failed", None, told)


@pytest.mark.parametrize(("with_progress", "levels"), [(True, ["INFO"]), (False, [])])
def test_the_console_of_a_command_says_a_mistake_once_with_a_server_too(
    with_progress: bool, levels: list[str]
) -> None:
    """Of the pipeline, it shows what begins and ends; of a stage, warnings alone."""
    console = PrefectConsoleHandler(stream=io.StringIO())
    logging.getLogger().addHandler(console)
    try:
        say_errors_once(with_progress)
    finally:
        logging.getLogger().removeHandler(console)
    found = [
        level
        for level in ("INFO", "WARNING", "ERROR")
        if console.filter(failure("prefect.flow_runs", getattr(logging, level)))
    ]
    assert found == [*levels, "WARNING"]
    for said in ("Finished in state Failed('a mistake')", "Running hook 'tell_of_failure'"):
        record = logging.LogRecord("prefect.flow_runs", logging.INFO, "", 0, said, None, None)
        assert not console.filter(record)
    assert console.filter(failure("prefect.client", logging.ERROR))


def test_a_mistake_is_in_a_runs_log_once() -> None:
    """In the state in which it ends; a fault is there with its traceback, too."""
    hide_tracebacks_of_mistakes()
    name = "prefect.task_runs"
    logger = logging.getLogger(name)
    assert not logger.filter(failure(name, logging.ERROR, InputError("no such file")))
    assert logger.filter(failure(name, logging.ERROR))
    assert logger.filter(failure(name, logging.ERROR, ValueError("a fault")))
