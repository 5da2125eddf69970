"""A stage's outputs appear whole or not at all."""

from pathlib import Path

import pytest

from tasks.project import replacing


def test_outputs_take_their_places_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "models" / "teacher"
    with replacing(target) as (folder,):
        (folder / "weights").write_text("new")
        assert not target.exists()
    assert (target / "weights").read_text() == "new"


def test_a_failure_leaves_the_old_outputs_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "teacher"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as (folder,):
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
