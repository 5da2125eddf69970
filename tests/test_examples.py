"""The examples run, and so do those in docstrings."""

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from torch import distributed

from examples import distil_a_student, plan_a_sharding, train_a_ranker

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = [
    "recsys.data.encoder",
    "recsys.distill.score_log",
    "recsys.models.factory",
    "recsys.planning.planner",
    "recsys.serving.export",
    "recsys.training.engine",
]


@pytest.fixture(autouse=True)
def _leave_the_group() -> Iterator[None]:
    """An engine outside a launch starts a process group that would outlive the test."""
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_docstring_say_what_happens(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_module_with_a_runnable_example_is_tested() -> None:
    found = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "recsys").rglob("*.py"))
        if ">>> " in path.read_text()
    ]
    assert found == WITH_EXAMPLES


def test_a_ranker_learns_a_table(tmp_path: Path) -> None:
    first, *_, last = train_a_ranker.main(tmp_path)
    assert first == pytest.approx(1.0, abs=0.001)
    assert last < 0.95


@pytest.mark.slow
def test_a_student_is_distilled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = distil_a_student.main(tmp_path, rows=2_400)
    assert found.keys() == {"plain", "distilled"}
    assert found["plain"] != found["distilled"]
    assert f"distilled: NE {found['distilled']:.4f}" in capsys.readouterr().out


def test_a_sharding_is_planned_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    console = Console(record=True, width=200)
    plan = plan_a_sharding.main(console)
    user = next(table for table in plan.tables if table.table == "user")
    assert len(user.ranks) > 1  # it is larger than one GPU
    assert f"user: {user.kind} on " in console.export_text()
