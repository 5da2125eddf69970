"""Settings of the teacher, augment and students stages."""

from pathlib import Path, PurePath
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from recsys.config import Settings, load_settings
from recsys.distill.distillation_settings import DistillationSettings, overlaid
from recsys.models.settings import ModelSettings
from recsys.towers.settings import TowersSettings
from recsys.training.settings import Quantisation, TrainSettings

PLAIN, DISTILLED = "plain", "distilled"


class TeacherSettings(Settings):
    """params/teacher.yaml; its towers are set in params/towers.yaml.

    ``snapshot_every_examples``: publish at the first window's end with so many examples since the
    last snapshot; null: every ``snapshot_every_windows``. ``hold_back_ne_increase``: a snapshot
    whose window NE is more than this fraction above that of the last good one (0.05 is 5 %), or
    with a NaN anywhere, is written but never scores. ``task_weights``: of the losses of tasks
    beside the data's main one, whose weight is 1; 1 where none is given.
    ``checkpoint_every_batches``: besides each window's end, a point to go on from after a kill;
    null for none. ``keep_checkpoints``: how many. ``checkpoint_asynchronously``: training waits for
    a copy in memory, not for the disk. Every ``full_checkpoint_every``-th is full, those between
    hold the table rows trained on since. ``quantise_checkpoints``: table weights in them; a run
    that goes on from fp16 or int8 does not end bitwise the same.
    """

    model: ModelSettings
    snapshot_every_windows: int = Field(default=1, ge=1)
    snapshot_every_examples: int | None = Field(default=None, ge=1)
    hold_back_ne_increase: float = Field(default=0.1, ge=0)
    task_weights: dict[str, NonNegativeFloat] = Field(default={})
    checkpoint_every_batches: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    checkpoint_asynchronously: bool = False
    full_checkpoint_every: int = Field(default=1, ge=1)
    quantise_checkpoints: Quantisation = "none"
    seed: int = Field(default=1, ge=0)


class TeacherLadderSettings(Settings):
    """params/teacher_ladder.yaml: models of growing size, by name."""

    models: dict[str, ModelSettings] = Field(min_length=1)


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

    ``batch_size`` is global (over all ranks). ``max_staleness_hours``: an example whose event time
    is further past the snapshot's high-water mark stays without a score; null scores every one.
    ``wait_hours``: how long after its event an example waits for its score, in the stream's time;
    then it trains on its hard label alone; null waits for every window's scores. ``segment_rows``:
    examples of one file of the log, what memory and a kill can cost. ``staleness_bins_hours``:
    borders of the report's histogram. ``parallel_tasks``: shares of the windows that Prefect scores
    at once, each in processes of its own; ``runner`` says where.
    """

    batch_size: int = Field(default=4096, ge=1)
    max_staleness_hours: float | None = Field(default=None, gt=0)
    wait_hours: float | None = Field(default=None, ge=0)
    segment_rows: int = Field(default=262_144, ge=1)
    staleness_bins_hours: list[float] = Field(default=[1, 2, 4, 8, 16, 24, 48, 96, 168])
    runner: Literal["threads", "dask", "ray"] = "threads"
    parallel_tasks: int = Field(default=1, ge=1)

    @field_validator("staleness_bins_hours")
    @classmethod
    def _rising(cls, borders: list[float]) -> list[float]:
        if not borders or borders[0] <= 0 or sorted(set(borders)) != borders:
            raise ValueError(
                "give at least one border; each must be above the one before it, the first above 0"
            )
        return borders


class BudgetSettings(Settings):
    """The most that a student may cost to serve: ``parameters``, tables included, and
    ``training_flops`` a sample (forward and backward; a third of them are served)."""

    parameters: PositiveInt | None = None
    training_flops: PositiveInt | None = None


class StudentSettings(Settings):
    """One student: its name, the domain (vertical) it serves and, where it differs from the others,
    how.

    ``tasks``: what it predicts, its main task first; null: the data's main one. ``task_weights``:
    of the losses of those beside its main one, whose weight is 1; 1 where none is given. What
    ``model`` and ``distillation`` give goes before what params/students.yaml gives for all.
    """

    name: str
    domain: str
    tasks: list[str] | None = None
    task_weights: dict[str, NonNegativeFloat] = Field(default={})
    model: ModelSettings | None = None
    budget: BudgetSettings = BudgetSettings()
    distillation: DistillationSettings | None = None

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        return _checked_name(name, "a student's name")


class StudentsSettings(Settings):
    """params/students.yaml: every student is trained once per arm and seed.

    ``arms``: by name, what an arm changes in the distillation of each student; ``plain`` changes
    the mode to none, and the report compares the others with it. ``diagnostics``: gradients and
    calibration of the heads, clipped and missing scores, in the metrics of each window.
    ``checkpoint_every_batches`` and ``keep_checkpoints`` are as in :class:`TeacherSettings`, for
    each student.
    """

    model: ModelSettings
    seeds: list[int] = Field(min_length=1)
    students: list[StudentSettings] = Field(min_length=1)
    distillation: DistillationSettings
    arms: dict[str, DistillationSettings] = Field(
        default={PLAIN: DistillationSettings(mode="none"), DISTILLED: DistillationSettings()}
    )
    diagnostics: bool = True
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

    @model_validator(mode="after")
    def _arms_can_be_trained(self) -> "StudentsSettings":
        plain = self.arms.get(PLAIN)
        if plain is None or not plain.is_plain:
            raise ValueError(
                f"arms must hold {PLAIN!r} with mode none: the others are compared with it"
            )
        for arm in self.arms:
            _checked_name(arm, "an arm's name")
            for student in self.students:
                distillation = self.distillation_of(student, arm)
                if distillation.has_peer and distillation.peer_model is None:
                    raise ValueError(
                        f"arm {arm!r}: mode {distillation.mode} needs peer_model, the larger ranker"
                    )
        return self

    def model_of(self, student: StudentSettings) -> ModelSettings:
        """The student's model."""
        return overlaid(self.model, student.model)

    def distillation_of(self, student: StudentSettings, arm: str) -> DistillationSettings:
        """How the student learns in ``arm``."""
        return overlaid(self.distillation, student.distillation, self.arms[arm])


def _checked_name(name: str, what: str) -> str:
    if not name or PurePath(name).name != name or name in {".", ".."}:
        raise ValueError(f"{what} must be usable as a folder name")
    return name
