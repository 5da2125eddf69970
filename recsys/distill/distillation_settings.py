"""How one student learns from a teacher: mode, heads, weights, adapter."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from recsys.config import Settings
from recsys.distill.modes import MODES, Mode, SoftHead, Teacher, known_mode
from recsys.models.settings import ModelSettings

S = TypeVar("S", bound=Settings)


class AdapterSettings(Settings):
    """The student adapter (ExFM, section 3.4): an MLP of the teacher's logit that learns the hard
    label.

    ``kind``: its prediction is the target of a head of its own (``extra_head``) or takes the place
    of the teacher's (``replace``). ``update``: it learns from a batch ``before`` the student does,
    as in the paper's Algorithm 1, or ``after``, so that its target does not know the batch's
    labels. ``loss_weight`` and ``label_scale`` are the extra head's w and α.

    Attributes:
        hidden_layers: widths of the adapter's hidden layers.
        learning_rate: of the adapter.
    """

    kind: Literal["extra_head", "replace"] = "extra_head"
    update: Literal["before", "after"] = "before"
    hidden_layers: list[PositiveInt] = Field(default=[8])
    learning_rate: PositiveFloat = 0.001
    loss_weight: float = Field(default=1.0, ge=0)
    label_scale: PositiveFloat = 1.0


class DistillationSettings(Settings):
    """What a student learns besides the hard label of its serving head (ExFM, section 3.3).

    ``mode``: ``none``; ``shared``: the serving head learns both labels; ``affine``: it does, the
    teacher's through a learned affine map of its logit; ``auxiliary``: a head of its own learns the
    teacher's; ``auxiliary_adapter``: the same with an adapter; ``co_distillation``: that head
    learns from a ranker of ``peer_model`` that is trained with the student, instead of from the
    teacher. With several tasks each learns its own label and score, through a head, a map or an
    adapter of its own.

    ``rows``: which examples the student trains on. ``own``: its domain's. ``scores_elsewhere``:
    also other domains', on the teacher's scores alone; one without a score teaches nothing.
    ``all``: other domains' as its own, labels and scores. ``auto``: what had the lowest NE on early
    windows, see :class:`recsys.distill.student_settings.StudentsSettings`. Its predictions, metrics
    and export are its own domain's whatever ``rows`` is.

    ``loss_weight`` is w, ``label_scale`` is α (the target is min(α p, 1)), ``gradient_scale`` is β,
    between a head of its own and the backbone; ``shared`` and ``affine`` have no such place and do
    not read it. Under Adam only the product w·β matters. ``hard_label_weight``: the distillation
    head also learns the hard label, with this weight (the auxiliary tower of Rec-Distill, arXiv
    2605.29755).

    An example whose score is older than ``max_staleness_hours`` (event time less the snapshot's
    high-water mark) counts as unscored; its distillation term halves every
    ``staleness_half_life_hours``.

    ``gate_windows``: a window's scores are not learnt from if, over so many windows before it, the
    teacher's log loss was larger than the student's by more than ``gate_deviations`` standard
    errors; null: they always are. See :mod:`recsys.distill.teacher_gate`.

    Attributes:
        head_layers: widths of the auxiliary head's hidden layers.
    """

    mode: Annotated[str, AfterValidator(known_mode)] = "auxiliary"
    rows: Literal["own", "scores_elsewhere", "all", "auto"] = "own"
    head_layers: list[PositiveInt] = Field(default=[32])
    loss_weight: float = Field(default=1.0, ge=0)
    gradient_scale: float = Field(default=3.0, ge=0)
    label_scale: PositiveFloat = 1.0
    hard_label_weight: float = Field(default=0.0, ge=0)
    max_staleness_hours: PositiveFloat | None = None
    staleness_half_life_hours: PositiveFloat | None = None
    gate_windows: PositiveInt | None = 3
    gate_deviations: float = Field(default=2.0, ge=0)
    adapter: AdapterSettings = AdapterSettings()
    peer_model: ModelSettings | None = None

    @property
    def way(self) -> Mode:
        """What ``mode`` names."""
        return MODES[self.mode]

    @property
    def is_plain(self) -> bool:
        """Whether there is no teacher: the student is its ranker and nothing more."""
        return self.way.teacher is Teacher.NOBODY

    @property
    def reads_scores(self) -> bool:
        """Whether it needs the teacher's scores."""
        return self.way.teacher is Teacher.SCORES

    @property
    def has_peer(self) -> bool:
        """Whether a ranker of ``peer_model`` is trained with the student and teaches it."""
        return self.way.teacher is Teacher.PEER

    @property
    def has_own_head(self) -> bool:
        """Whether a head beside the serving head learns the soft label."""
        return self.way.head is SoftHead.OWN

    @property
    def has_adapted_head(self) -> bool:
        """Whether a further head learns the adapter's prediction."""
        return self.way.adapts and self.adapter.kind == "extra_head"

    @property
    def target_is_adapted(self) -> bool:
        """Whether the soft label is the adapter's prediction in place of the teacher's."""
        return self.way.adapts and self.adapter.kind == "replace"


def overlaid(base: S, *changes: S | None) -> S:
    """``base`` with every key that ``changes`` set, the last one winning; nested settings key by
    key. It counts as loaded from where ``base`` was."""
    values = base.model_dump(exclude_unset=True)
    for change in changes:
        if change is not None:
            _overlay(values, change.model_dump(exclude_unset=True))
    return type(base).model_validate(values).placed_as(base)


def _overlay(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _overlay(values[key], value)
        else:
            values[key] = value
