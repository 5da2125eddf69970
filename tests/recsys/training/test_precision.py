"""bf16: auto asks the processor; bf16: true is warned of where the processor has no such
instructions."""

import pytest
import torch

from recsys.training import precision
from recsys.training.launch import run_on_ranks
from recsys.training.precision import computes_in_bf16
from recsys.training.settings import TrainSettings


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_auto_follows_the_processor(
    capabilities: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = TrainSettings(world_size=1, bf16="auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **capabilities})
    assert run_on_ranks(computes_in_bf16, (settings,), 1, 1) == [bool(capabilities)]
    assert capsys.readouterr().err == ""


def test_bf16_without_instructions_is_warned_of_once_with_a_measured_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainSettings(world_size=1, bf16=True)
    precision._warn.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    for _ in range(2):
        assert run_on_ranks(computes_in_bf16, (settings,), 1, 1) == [True]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("TrainSettings: key 'bf16': this machine has no instructions")
    assert " times as long as in fp32; use false or auto" in line
