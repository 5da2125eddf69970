"""The reference pages match the settings classes and the options of the commands."""

from pathlib import Path

import pytest

from flows.reference import COMMANDS_PAGE, PARAMETERS, commands, parameters
from tasks.settings import FILES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    return parameters()


def test_the_pages_are_current(written: str) -> None:
    stale = "is not what the code says; run python -m flows.reference"
    assert PARAMETERS.read_text() == written, f"{PARAMETERS} {stale}"
    assert COMMANDS_PAGE.read_text() == commands(), f"{COMMANDS_PAGE} {stale}"


def test_every_key_of_every_file_has_a_row(written: str) -> None:
    for name, model in FILES.items():
        section = written.partition(f"## params/{name}.yaml\n")[2].partition("\n## ")[0]
        for key in model.model_fields:
            assert f"\n| `{key}` | " in section, f"{name}.{key}"


def test_every_row_has_a_meaning(written: str) -> None:
    rows = [line for line in written.splitlines() if line.startswith("| `")]
    assert len(rows) > 300
    assert [line for line in rows if line.endswith("|  |")] == []


def test_a_row_has_type_default_unit_and_meaning(written: str) -> None:
    row = next(line for line in written.splitlines() if line.startswith("| `rank_timeout_s`"))
    assert row.startswith("| `rank_timeout_s` | number > 0 | `1800.0` | seconds | a rank without")
    mode = next(line for line in written.splitlines() if line.startswith("| `mode` |"))
    assert "`auxiliary`" in mode
    weights = next(line for line in written.splitlines() if line.startswith("| `dense_clip_norm`"))
    assert "| number > 0 or null | `null` |" in weights


def test_defaults_of_lists_of_sections_stand_in_their_file(written: str) -> None:
    row = next(line for line in written.splitlines() if line.startswith("| `students` |"))
    assert row.startswith("| `students` | list of [StudentSettings](#studentsettings) | see the")
