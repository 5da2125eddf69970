"""The command line writes parameters as asked, all or none, and says what is wrong in one line."""

import argparse

import pytest

from flows.command_line import add_overrides, exit_status
from recsys.config import InputError


def test_a_mistake_becomes_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError("params/data.yaml: no such file")

    assert exit_status(fail) == 2
    assert capsys.readouterr().err == "error: params/data.yaml: no such file\n"


def test_an_interrupt_is_status_130_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert exit_status(interrupt) == 130
    assert capsys.readouterr().err == ""


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
