"""Settings of the teacher stage."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from recsys.config import Settings, filled_from
from recsys.models.settings import ModelSettings
from recsys.training.batch_size import AUTO_BATCH, BatchSize
from recsys.training.settings import Quantisation

TEACHER_MODEL = ModelSettings(
    architecture="dlrm", embedding_dimension=32, dense_layers=[64, 32], over_layers=[128, 64]
)


class TeacherSettings(Settings):
    """The teacher's model and training; its towers are set in
    :class:`recsys.towers.settings.TowersSettings`.

    Attributes:
        model: the teacher's model.
        batch_size: examples per step; auto: fits each window, see
            :func:`recsys.training.batch_size.fitting_batch`.
        dense_passes: passes of the dense part over each window, on tables as they were before it;
            then the tables train on it in one pass. 0: one pass trains both.
        table_learning_rate: learning rate of the embedding tables; null: that of all training;
            auto: one of ``rates_tried``, by NE on early windows.
        rates_tried: the rates that auto chooses from.
        rate_auto_windows: number of early windows on which auto is decided.
        snapshot_every_windows: windows between two snapshots.
        snapshot_every_examples: instead, publish at the end of the first window with at least this
            many examples since the last snapshot.
        hold_back_ne_increase: a snapshot whose window NE is more than this fraction above that of
            the last good one (0.05 is 5 %), or that has a NaN, is written but never scores.
        keep_snapshots: how many snapshots keep their weights, the newest that may score; null: all.
            Scores of the others stay; a window that one of them should have scored gets no scores.
        task_weights: loss weights of further tasks, relative to the main task's 1; default 1.
        checkpoint_every_batches: batches between checkpoints within a window, for resuming after a
            kill; null: only at the ends of windows.
        keep_checkpoints: number of checkpoints to keep.
        checkpoint_asynchronously: whether training waits only for a copy in memory, not for the
            disk.
        full_checkpoint_every: every N-th checkpoint is full; those between hold the table rows
            trained on since.
        quantise_checkpoints: precision of table weights in checkpoints; a run that resumes from
            fp16 or int8 is not bitwise the same.
        seed: seed of the initial weights.
    """

    model: Annotated[ModelSettings, filled_from(TEACHER_MODEL)] = TEACHER_MODEL
    batch_size: BatchSize = AUTO_BATCH
    dense_passes: NonNegativeInt = 2
    table_learning_rate: PositiveFloat | Literal["auto"] | None = "auto"
    rates_tried: list[PositiveFloat] = Field(default=[0.1, 0.03], min_length=1)
    rate_auto_windows: int = Field(default=4, ge=2)
    snapshot_every_windows: int = Field(default=1, ge=1)
    snapshot_every_examples: int | None = Field(default=None, ge=1)
    hold_back_ne_increase: float = Field(default=0.1, ge=0)
    keep_snapshots: int | None = Field(default=None, ge=1)
    task_weights: dict[str, NonNegativeFloat] = Field(default={})
    checkpoint_every_batches: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    checkpoint_asynchronously: bool = False
    full_checkpoint_every: int = Field(default=1, ge=1)
    quantise_checkpoints: Quantisation = "none"
    seed: int = Field(default=1, ge=0, lt=2**63)

    @property
    def windows_to_choose_on(self) -> int:
        """How many windows must exist before the teacher can be trained."""
        return self.rate_auto_windows if self.table_learning_rate == "auto" else 1


class TeacherLadderSettings(Settings):
    """Models of growing size, by name.

    Attributes:
        models: settings of each model.
    """

    models: dict[str, ModelSettings] = Field(min_length=1)
