"""The benchmark of a GPU, in a tiny form on the CPU; its part ``run`` is make run's own command."""

import pytest

from bench.gpu.__main__ import EXACT, measure, page
from bench.gpu.checks import is_right
from bench.gpu.speed import TINY


def test_every_part_runs_on_a_cpu_and_is_right() -> None:
    parts = [*EXACT, "speed"]
    found = measure("cpu", parts, TINY)
    assert list(found) == parts
    for part, lines in found.items():
        assert is_right(lines), (part, lines)
    text = page("cpu", found)
    assert "| row_wise | adagrad |" in text
    assert "| dlrm 8, 64 | TorchRec's pipeline, fp32 |" in text


@pytest.mark.parametrize("line", ["| table_wise | sgd | 0.1 | WRONG |", "the same bits: NO."])
def test_one_wrong_line_makes_a_part_wrong(line: str) -> None:
    assert not is_right(["| kind | optimiser |", line])
