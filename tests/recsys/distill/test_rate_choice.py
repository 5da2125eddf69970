"""``table_learning_rate: auto``: what has the lowest NE on early windows, whatever comes later."""

import json
from pathlib import Path

import pytest

from recsys.config import InputError, parse_settings
from recsys.distill.teacher import train_teacher
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import TrainingJob
from tests.support.files import contents
from tests.support.toy_stream import TEACHER, TRAIN

AUTO = TEACHER.model_copy(
    update={"table_learning_rate": "auto", "rates_tried": [0.001, 0.3], "rate_auto_windows": 3}
)


def test_the_teacher_is_the_one_that_is_trained_at_the_rate_that_is_chosen(
    windows_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("chosen", "given"):
        (tmp_path / name).mkdir()
    train_teacher(TrainingJob(windows_dir, AUTO, TRAIN, tmp_path / "chosen"))
    said = json.loads((tmp_path / "chosen/rate.json").read_text())
    assert said["table_learning_rate"] == 0.3  # four windows are too few for a rate of 0.001
    assert said["windows"] == ["w1", "w2"]
    assert said["ne"]["0.3"] < said["ne"]["0.001"]
    assert "teacher: table learning rate 0.3 (NE of w1 to w2: 0.001" in capfd.readouterr().err
    fixed = AUTO.model_copy(update={"table_learning_rate": 0.3})
    train_teacher(TrainingJob(windows_dir, fixed, TRAIN, tmp_path / "given"))
    chosen = contents(tmp_path / "chosen")
    del chosen["rate.json"]
    assert chosen == contents(tmp_path / "given")


def test_a_choice_that_is_made_stays(windows_dir: Path, tmp_path: Path) -> None:
    """A run that goes on with more windows does not choose again."""
    said = {"table_learning_rate": 0.001, "windows": ["w1", "w2"], "ne": {"0.001": 1.0}}
    (tmp_path / "rate.json").write_text(json.dumps(said))
    train_teacher(TrainingJob(windows_dir, AUTO, TRAIN, tmp_path))
    assert json.loads((tmp_path / "rate.json").read_text()) == said


def test_too_few_windows_to_choose_on_are_refused(windows_dir: Path, tmp_path: Path) -> None:
    settings = parse_settings("rate_auto_windows: 5", "teacher.yaml", TeacherSettings)
    model = settings.model_copy(update={"model": TEACHER.model})
    with pytest.raises(
        InputError, match=r"teacher.yaml: key 'rate_auto_windows': .* on 5 windows, the data have 4"
    ):
        train_teacher(TrainingJob(windows_dir, model, TRAIN, tmp_path))
    assert not list(tmp_path.iterdir())
