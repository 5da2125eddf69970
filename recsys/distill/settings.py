"""Settings of the teacher, augment and students stages."""

from pathlib import Path, PurePath

from pydantic import Field, field_validator, model_validator

from recsys.config import Settings, load_settings
from recsys.models.settings import ModelSettings
from recsys.towers.settings import TowersSettings
from recsys.training.settings import Quantisation, TrainSettings


class TeacherSettings(Settings):
    """params/teacher.yaml; its towers are set in params/towers.yaml.

    ``hold_back_ne_increase``: a snapshot whose window NE is more than this fraction above that of the
    last good one is written but never scores (0.05 is 5 %). ``checkpoint_every_batches``: besides each
    window's end, a point to go on from after a kill; null for none. ``keep_checkpoints``: how many.
    ``checkpoint_asynchronously``: training waits for a copy in memory, not for the disk. Every
    ``full_checkpoint_every``-th is full, those between hold the table rows trained on since.
    ``quantise_checkpoints``: table weights in them; a run that goes on from fp16 or int8 does not end bitwise the same.
    """

    model: ModelSettings
    snapshot_every_windows: int = Field(default=1, ge=1)
    hold_back_ne_increase: float = Field(default=0.1, ge=0)
    checkpoint_every_batches: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    checkpoint_asynchronously: bool = False
    full_checkpoint_every: int = Field(default=1, ge=1)
    quantise_checkpoints: Quantisation = "none"
    seed: int = Field(default=1, ge=0)


def load_teacher(params: Path) -> tuple[TeacherSettings, TrainSettings]:
    """The teacher of ``params``/teacher.yaml and train.yaml with the towers of towers.yaml.

    Raises:
        InputError: one of the files is missing or wrong.
    """
    towers = load_settings(params / "towers.yaml", TowersSettings)
    teacher = load_settings(params / "teacher.yaml", TeacherSettings)
    train = load_settings(params / "train.yaml", TrainSettings)
    return teacher.model_copy(update={"model": towers.model(teacher.model)}), towers.train(train)


class AugmentSettings(Settings):
    """params/augment.yaml.

    ``batch_size`` is global (over all ranks). ``max_staleness_hours``: an example whose event time is
    further past the snapshot's high-water mark stays without a score; null scores every one.
    """

    batch_size: int = Field(default=4096, ge=1)
    max_staleness_hours: float | None = Field(default=None, gt=0)


class AuxiliaryHeadSettings(Settings):
    """The distillation head and its loss (ExFM, section 3.3).

    ``loss_weight`` is w, ``gradient_scale`` is β (between head and backbone), ``label_scale`` is α
    (the head's target is min(α p, 1)). Under Adam only the product w·β matters.
    """

    head_layers: list[int] = Field(default_factory=lambda: [32])
    loss_weight: float = Field(default=1.0, ge=0)
    gradient_scale: float = Field(default=1.0, ge=0)
    label_scale: float = Field(default=1.0, gt=0)

    @field_validator("head_layers")
    @classmethod
    def _positive(cls, widths: list[int]) -> list[int]:
        if any(width < 1 for width in widths):
            raise ValueError("every width must be at least 1")
        return widths


class StudentSettings(Settings):
    """One student: its name and the domain (vertical) it serves."""

    name: str
    domain: str

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not name or PurePath(name).name != name or name in {".", ".."}:
            raise ValueError("a student's name must be usable as a folder name")
        return name


class StudentsSettings(Settings):
    """params/students.yaml: every student is trained plain and distilled, once per seed.

    ``checkpoint_every_batches`` and ``keep_checkpoints`` are as in :class:`TeacherSettings`, for each student.
    """

    model: ModelSettings
    seeds: list[int] = Field(min_length=1)
    students: list[StudentSettings] = Field(min_length=1)
    distillation: AuxiliaryHeadSettings
    checkpoint_every_batches: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _unique(self) -> "StudentsSettings":
        names = [student.name for student in self.students]
        if len(set(names)) != len(names):
            raise ValueError(f"student names must differ, got {names}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}")
        return self
