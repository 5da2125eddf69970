"""Settings of the teacher stage."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from recsys.config import Settings, filled_from
from recsys.models.settings import ModelSettings
from recsys.training.batch_size import AUTO_BATCH, BatchSize
from recsys.training.settings import Quantisation

TEACHER_MODEL = ModelSettings(
    architecture="dlrm", embedding_dimension=32, dense_layers=[64, 32], over_layers=[128, 64]
)


class TeacherSettings(Settings):
    """The teacher's model and training; its towers are those of
    :class:`recsys.towers.settings.TowersSettings`.

    ``batch_size``: auto: of each window, :func:`recsys.training.batch_size.fitting_batch`.
    ``table_learning_rate``: of the embedding tables; null: that of all training; auto: of
    ``rates_tried`` the one with the lowest NE on the first ``rate_auto_windows`` windows.
    ``snapshot_every_examples``: publish at the first window's end with so many examples since the
    last snapshot; null: every ``snapshot_every_windows``. ``hold_back_ne_increase``: a snapshot
    whose window NE is more than this fraction above that of the last good one (0.05 is 5 %), or
    with a NaN anywhere, is written but never scores. ``keep_snapshots``: weights stay of so many
    snapshots, the newest that may score; null: of all. What the others scored stays; a window that
    one of them is due to score gets no scores. ``task_weights``: of the losses of tasks
    beside the data's main one, whose weight is 1; 1 where none is given.
    ``checkpoint_every_batches``: besides each window's end, a point to go on from after a kill;
    null for none. ``keep_checkpoints``: how many. ``checkpoint_asynchronously``: training waits for
    a copy in memory, not for the disk. Every ``full_checkpoint_every``-th is full, those between
    hold the table rows trained on since. ``quantise_checkpoints``: table weights in them; a run
    that goes on from fp16 or int8 does not end bitwise the same.
    """

    model: Annotated[ModelSettings, filled_from(TEACHER_MODEL)] = TEACHER_MODEL
    batch_size: BatchSize = AUTO_BATCH
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
        """How many windows must be there before the teacher is trained on any."""
        return self.rate_auto_windows if self.table_learning_rate == "auto" else 1


class TeacherLadderSettings(Settings):
    """Models of growing size, by name."""

    models: dict[str, ModelSettings] = Field(min_length=1)
