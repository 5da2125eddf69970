"""The command line writes parameters as asked, all or none, and says what is wrong in one line."""

import argparse
from pathlib import Path

import pytest
import yaml

from flows.command_line import add_overrides, apply_overrides, exit_status
from recsys.config import InputError


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "params"
    folder.mkdir()
    (folder / "data.yaml").write_text(
        "# which log\ndataset: synthetic  # a file of datasets/\nwindows:\n  hours: 24\n"
    )
    monkeypatch.chdir(tmp_path)
    return folder


def test_an_override_changes_one_value_and_keeps_comments(params: Path) -> None:
    apply_overrides({"data.dataset": "criteo", "data.windows.hours": "12"})
    text = (params / "data.yaml").read_text()
    assert yaml.safe_load(text) == {"dataset": "criteo", "windows": {"hours": 12}}
    assert "# which log" in text
    assert "# a file of datasets/" in text


@pytest.mark.parametrize(
    "key", ["data.datset", "dta.dataset", "data", "data.windows.minutes", "data.dataset.name"]
)
def test_a_wrong_key_is_an_error_and_nothing_is_written(params: Path, key: str) -> None:
    before = (params / "data.yaml").read_text()
    with pytest.raises(InputError, match="there are"):
        apply_overrides({"data.dataset": "criteo", key: "1"})
    assert (params / "data.yaml").read_text() == before


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
