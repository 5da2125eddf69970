"""The project's settings: which file of params/ holds what."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from recsys.baselines.settings import BaselinesSettings
from recsys.config import Settings, load_settings, parse_settings
from recsys.data.settings import DatasetSettings, DataSettings, load_dataset
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.teacher_settings import TeacherLadderSettings, TeacherSettings
from recsys.distill.tuning_settings import TuneSettings
from recsys.distill.withdrawn_settings import WithdrawnSettings
from recsys.evaluation.settings import EvaluateSettings
from recsys.serving.settings import ServeSettings
from recsys.towers.settings import TowersSettings
from recsys.training.settings import TrainSettings
from tasks.prefect_settings import PrefectSettings
from tasks.project import PARAMS
from tasks.stream_settings import StreamSettings
from tasks.teacher_settings import with_towers
from tasks.tracking_settings import TrackingSettings

S = TypeVar("S", bound=Settings)
DATASETS = "datasets"  # the folder in PARAMS with descriptions of logs
# The files of params/, without .yaml, and the settings class of each.
FILES: dict[str, type[Settings]] = {
    "data": DataSettings,
    "baselines": BaselinesSettings,
    "towers": TowersSettings,
    "train": TrainSettings,
    "teacher": TeacherSettings,
    "teacher_ladder": TeacherLadderSettings,
    "augment": AugmentSettings,
    "students": StudentsSettings,
    "evaluate": EvaluateSettings,
    "tracking": TrackingSettings,
    "prefect": PrefectSettings,
    "stream": StreamSettings,
    "withdrawn": WithdrawnSettings,
    "tune": TuneSettings,
    "serve": ServeSettings,
}


@dataclass(frozen=True)
class ProjectSettings:
    """The settings of all stages. ``teacher`` and ``train_teacher`` already include the towers of
    ``towers``."""

    data: DataSettings
    dataset: DatasetSettings
    towers: TowersSettings
    train: TrainSettings
    teacher: TeacherSettings
    train_teacher: TrainSettings
    augment: AugmentSettings
    students: StudentsSettings
    evaluate: EvaluateSettings


def load_project(params: Path = PARAMS, texts: Mapping[Path, str] | None = None) -> ProjectSettings:
    """All settings of ``params``, with the contents in ``texts`` in place of those files.

    Raises:
        InputError: a file is missing or wrong, or two of them contradict each other.
    """
    changed = texts or {}

    def load(name: str, model: type[S]) -> S:
        path = params / f"{name}.yaml"
        if path in changed:
            return parse_settings(changed[path], str(path), model)
        return load_settings(path, model)

    data = load("data", DataSettings)
    described = params / DATASETS / f"{data.dataset}.yaml"
    if described in changed:
        dataset = load(f"{DATASETS}/{data.dataset}", DatasetSettings)
    else:
        dataset = load_dataset(data, params / DATASETS)
    towers, train = load("towers", TowersSettings), load("train", TrainSettings)
    teacher, train_teacher = with_towers(load("teacher", TeacherSettings), train, towers)
    for name in ("baselines", "tracking", "prefect", "stream", "withdrawn", "tune"):
        load(name, FILES[name])
    return ProjectSettings(
        data=data,
        dataset=dataset,
        towers=towers,
        train=train,
        teacher=teacher,
        train_teacher=train_teacher,
        augment=load("augment", AugmentSettings),
        students=load("students", StudentsSettings),
        evaluate=load("evaluate", EvaluateSettings),
    )
