"""A user's mistake is one line and exit status 2."""

import pytest

from flows.command_line import apply_or_exit
from recsys.config import InputError


def test_a_mistake_becomes_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError("params/data.yaml: no such file")

    with pytest.raises(SystemExit) as exit_info:
        apply_or_exit(fail)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: params/data.yaml: no such file\n"
