"""The teacher's settings, from three files of params/."""

from pathlib import Path

from recsys.config import load_settings
from recsys.distill.teacher_settings import TeacherSettings
from recsys.towers.settings import TowersSettings
from recsys.training.settings import TrainSettings
from tasks.project import PARAMS


def load_teacher(params: Path = PARAMS) -> tuple[TeacherSettings, TrainSettings]:
    """The teacher's settings from teacher.yaml and train.yaml in ``params``, with the towers of
    towers.yaml.

    Raises:
        InputError: one of the files is missing or wrong.
    """
    towers = load_settings(params / "towers.yaml", TowersSettings)
    teacher = load_settings(params / "teacher.yaml", TeacherSettings)
    return with_towers(teacher, load_settings(params / "train.yaml", TrainSettings), towers)


def with_towers(
    teacher: TeacherSettings, train: TrainSettings, towers: TowersSettings
) -> tuple[TeacherSettings, TrainSettings]:
    """``teacher`` and its training settings with the towers added.

    Raises:
        InputError: one of them sets its own towers.
    """
    return teacher.model_copy(update={"model": towers.model(teacher.model)}), towers.train(train)
