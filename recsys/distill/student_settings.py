"""Settings of the students stage."""

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from recsys.config import Settings, filled_from
from recsys.distill.distillation_settings import DistillationSettings, overlaid
from recsys.models.settings import ModelSettings
from recsys.serving.settings import ExportSettings
from recsys.training.batch_size import AUTO_BATCH, BatchSize

PLAIN, DISTILLED, ALL_ROWS = "plain", "distilled", "all_rows"
AUTO = "auto"
OF_ALL_STUDENTS = DistillationSettings(rows=AUTO)
STUDENT_MODEL = ModelSettings(
    architecture="dlrm",
    embedding_dimension=8,
    dense_layers=[32, 8],
    over_layers=[64, 32],
    cross_layers=1,
    cross_rank=8,
)


def _checked_name(name: str, what: str) -> str:
    if not name or PurePath(name).name != name or name in {".", ".."}:
        raise ValueError(f"{what} must be usable as a folder name")
    if name.endswith(".json"):
        raise ValueError(f"{what} must not end in .json, as files of the stage do")
    return name


class BudgetSettings(Settings):
    """The most that a student may cost to serve: ``parameters``, tables included, and
    ``training_flops`` a sample (forward and backward; a third of them are served): more is refused
    before it trains. ``memory_mb`` of the exported weights, and the median ``latency_ms`` of one
    row and ``latency_512_ms`` of 512: with more it does not become champion."""

    parameters: PositiveInt | None = None
    training_flops: PositiveInt | None = None
    memory_mb: PositiveFloat | None = None
    latency_ms: PositiveFloat | None = None
    latency_512_ms: PositiveFloat | None = None


class StudentSettings(Settings):
    """One student: its name, the domain (vertical) it serves and, where it differs from the others,
    how.

    ``tasks``: what it predicts, its main task first; null: the data's main one. ``task_weights``:
    of the losses of those beside its main one, whose weight is 1; 1 where none is given. What
    ``model`` and ``distillation`` give goes before what :class:`StudentsSettings` gives for all.

    Attributes:
        name: of the student; its model is registered as towerflow-NAME.
        domain: whose rows it is trained for, evaluated on and served for.
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
    """Every student is trained once per arm and seed.

    ``arms``: by name, what an arm changes in the distillation of each student; ``plain`` changes
    the mode to none, and the report compares the others with it. An arm that sets the mode to none
    has its own domain's rows, whatever ``distillation`` says, unless it sets ``rows`` itself.
    ``auto_windows``: where ``rows`` or ``table_learning_rate`` is ``auto``, a student's arm is
    first trained with each choice on so many windows, with the first seed, and takes the one of the
    lowest NE on all of them but the first; then it starts anew.
    ``batch_size``: auto: of each window, :func:`recsys.training.batch_size.fitting_batch`.
    ``dense_passes``: of each window the dense part learns in so many passes, on tables as they were
    before it, then the tables in one; 0: one pass trains both.
    ``table_learning_rate``: of the embedding tables; null: that of all training; auto: one of
    ``rates_tried``.
    ``side_by_side``: each rank trains whole students, one after the other; false: all ranks train
    one student together, which tables larger than one rank's memory need. Ranks of several nodes
    train together. ``export``: how tables are stored and predictions calibrated. ``diagnostics``:
    gradients and calibration of the heads, clipped and missing scores, in the metrics of each
    window.
    ``checkpoint_every_batches`` and ``keep_checkpoints`` are as the teacher's, for each
    student.
    """

    model: Annotated[ModelSettings, filled_from(STUDENT_MODEL)] = STUDENT_MODEL
    batch_size: BatchSize = AUTO_BATCH
    dense_passes: NonNegativeInt = 2
    table_learning_rate: PositiveFloat | Literal["auto"] | None = "auto"
    rates_tried: list[PositiveFloat] = Field(default=[0.1, 0.03], min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(default=[1, 2, 3], min_length=1)
    students: list[StudentSettings] = Field(
        default=[
            StudentSettings(name="feed", domain="feed"),
            StudentSettings(name="video", domain="video"),
        ],
        min_length=1,
    )
    distillation: Annotated[DistillationSettings, filled_from(OF_ALL_STUDENTS)] = OF_ALL_STUDENTS
    arms: dict[str, DistillationSettings] = Field(
        default={
            PLAIN: DistillationSettings(mode="none"),
            DISTILLED: DistillationSettings(),
            ALL_ROWS: DistillationSettings(mode="none", rows="all"),
        }
    )
    auto_windows: int = Field(default=4, ge=2)
    side_by_side: bool = True
    export: ExportSettings = ExportSettings()
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

    @property
    def table_learning_rates(self) -> tuple[float | None, ...]:
        """Those that a student may take; None is the rate of all training."""
        rate = self.table_learning_rate
        return tuple(self.rates_tried) if rate == AUTO else (rate,)

    @property
    def windows_to_choose_on(self) -> int:
        """How many windows there must be before any student can be trained: 0 where nothing is to
        be chosen."""
        chosen = len(self.table_learning_rates) > 1 or any(
            self.distillation_of(student, arm).rows == AUTO
            for student in self.students
            for arm in self.arms
        )
        return self.auto_windows if chosen else 0

    def model_of(self, student: StudentSettings) -> ModelSettings:
        """The student's model."""
        return overlaid(self.model, student.model)

    def distillation_of(self, student: StudentSettings, arm: str) -> DistillationSettings:
        """How the student learns in ``arm``."""
        changes = self.arms[arm]
        own_rows = DistillationSettings(rows="own") if changes.is_plain else None
        return overlaid(self.distillation, student.distillation, own_rows, changes)
