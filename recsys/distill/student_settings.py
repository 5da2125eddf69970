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
    """Upper limits on a student's cost. A student above ``parameters`` or ``training_flops`` is
    refused before it trains; one above the others does not become champion.

    Attributes:
        parameters: parameters, including tables.
        training_flops: FLOPs per example, forward and backward; serving takes a third of them.
        memory_mb: size of the exported weights.
        latency_ms: median latency of one row.
        latency_512_ms: median latency of 512 rows.
    """

    parameters: PositiveInt | None = None
    training_flops: PositiveInt | None = None
    memory_mb: PositiveFloat | None = None
    latency_ms: PositiveFloat | None = None
    latency_512_ms: PositiveFloat | None = None


class StudentSettings(Settings):
    """One student: its name, the domain (vertical) it serves, and how it differs from the others.
    Keys of ``model`` and ``distillation`` override those of :class:`StudentsSettings`.

    Attributes:
        name: name of the student; its model is registered as towerflow-NAME.
        domain: domain whose rows it is evaluated on and served for.
        tasks: tasks that it predicts, its main task first; null: the data's main task.
        task_weights: loss weights of its further tasks, relative to the main task's 1; default 1.
        model: changes to the model.
        budget: upper limits on its cost.
        distillation: changes to the distillation.
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

    If ``rows`` or ``table_learning_rate`` is ``auto``, each arm of a student is first trained with
    every choice on ``auto_windows`` windows, with the first seed. It takes the choice with the
    lowest NE on all of them but the first, and then starts over.

    Attributes:
        model: the students' model.
        batch_size: examples per step; auto: fits each window, see
            :func:`recsys.training.batch_size.fitting_batch`.
        dense_passes: passes of the dense part over each window, on tables as they were before it;
            then the tables train on it in one pass. 0: one pass trains both.
        table_learning_rate: learning rate of the embedding tables; null: that of all training;
            auto: one of ``rates_tried``.
        rates_tried: the rates that auto chooses from.
        seeds: each arm is trained once per seed.
        students: the students.
        distillation: how students learn from the teacher, shared by all.
        arms: changes to each student's distillation, by the arm's name; ``plain`` sets the mode to
            none, and the report compares the others with it. An arm with mode none trains on its
            own domain's rows unless it sets ``rows`` itself.
        auto_windows: number of early windows on which auto is decided.
        side_by_side: true: each rank trains complete students, one after the other; false: all
            ranks train one student together, which is needed if its tables do not fit one rank.
            Ranks of several nodes train together.
        export: how tables are stored and predictions calibrated.
        diagnostics: whether each window's metrics include the gradients of both losses, the
            calibration of both heads, and counts of clipped and missing scores.
        checkpoint_every_batches: as the teacher's, for each student.
        keep_checkpoints: as the teacher's, for each student.
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
        """The rates a student may use; None is the rate in the training settings."""
        rate = self.table_learning_rate
        return tuple(self.rates_tried) if rate == AUTO else (rate,)

    @property
    def windows_to_choose_on(self) -> int:
        """How many windows must exist before any student can be trained; 0 if nothing is to be
        chosen."""
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
