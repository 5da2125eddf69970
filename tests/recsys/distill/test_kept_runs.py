"""A change of one student trains that student alone: the others are taken from what the last launch
has kept, if it is whole."""

from pathlib import Path

import pytest

from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.training_job import TrainingJob
from tests.support.files import contents
from tests.support.toy_stream import MODEL, STUDENTS, TRAIN


def two_students(over_layers: list[int]) -> StudentsSettings:
    """Of which the second has layers of its own."""
    own = MODEL.model_copy(update={"over_layers": over_layers})
    students = [
        StudentSettings(name="one", domain="b"),
        StudentSettings(name="two", domain="a", model=own),
    ]
    arms = {"plain": DistillationSettings(mode="none"), "distilled": DistillationSettings()}
    return STUDENTS.model_copy(update={"students": students, "arms": arms})


def train(windows: Path, scores: Path, settings: StudentsSettings, folder: Path) -> Path:
    output = folder / "output"
    output.mkdir(parents=True)
    job = TrainingJob(windows, settings, TRAIN, output, scores_dir=scores)
    train_students(job, folder / "resume", folder.parent / "kept")
    return output


def inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_one_students_change_trains_that_student_alone(
    windows_dir: Path, scores_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(windows_dir, scores_dir, two_students([8]), tmp_path / "first")
    assert "not repeated" not in capsys.readouterr().err
    (damaged,) = [
        path
        for path in (tmp_path / "kept").rglob("metrics.json")
        if path.parts[-4:-1] == ("one", "distilled", "seed-1")
    ]
    damaged.unlink()  # a link: what it was linked from stays
    damaged.write_text("{}")
    second = train(windows_dir, scores_dir, two_students([4]), tmp_path / "second")
    assert "students: 1 of 4 trainings are unchanged and reused" in capsys.readouterr().err
    assert contents(second / "one") == contents(first / "one")
    assert inodes(second / "one/plain") == inodes(first / "one/plain")
    assert not inodes(second / "one/distilled") & inodes(first / "one/distilled")
    for arm in ("plain", "distilled"):
        assert contents(second / "two" / arm) != contents(first / "two" / arm)
