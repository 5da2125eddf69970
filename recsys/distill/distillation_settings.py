"""How one student learns from a teacher: mode, heads, weights, adapter."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from recsys.config import Settings
from recsys.distill.modes import MODES, Mode, SoftHead, Teacher, known_mode
from recsys.models.settings import ModelSettings

S = TypeVar("S", bound=Settings)


class AdapterSettings(Settings):
    """The student adapter (ExFM, section 3.4): an MLP on the teacher's logit that is trained on the
    hard label.

    Attributes:
        kind: extra_head: its prediction is the target of a separate head; replace: it replaces the
            teacher's prediction.
        update: before: it trains on a batch before the student does, as in the paper's Algorithm 1;
            after: so that its target does not know the batch's labels.
        hidden_layers: widths of the adapter's hidden layers.
        learning_rate: learning rate of the adapter.
        loss_weight: w of the extra head.
        label_scale: alpha of the extra head.
    """

    kind: Literal["extra_head", "replace"] = "extra_head"
    update: Literal["before", "after"] = "before"
    hidden_layers: list[PositiveInt] = Field(default=[8])
    learning_rate: PositiveFloat = 0.001
    loss_weight: float = Field(default=1.0, ge=0)
    label_scale: PositiveFloat = 1.0


class DistillationSettings(Settings):
    """What a student learns besides the hard label of its serving head (ExFM, section 3.3).

    With several tasks, each learns its own label and score, through its own head, map or adapter.
    Whatever ``rows`` is, predictions, metrics and export cover only the student's own domain.

    Attributes:
        mode: none; shared: the serving head learns both labels; affine: so does it, but the
            teacher's label through a learned affine map of its logit; auxiliary: a separate head
            learns the teacher's label; auxiliary_adapter: the same with an adapter;
            co_distillation: the separate head learns from a ranker of ``peer_model`` that is
            trained with the student.
        rows: which examples the student trains on. own: its domain's; scores_elsewhere: also other
            domains' examples that have a score, without their labels; all: also other domains'
            examples with labels and scores; auto: whichever had the lowest NE on early windows.
        candidates: whether the student also trains on the log's scored candidates, of its domain
            with rows own, else of all; without effect if the log has none or the mode reads no
            scores.
        head_layers: widths of the auxiliary head's hidden layers.
        loss_weight: w, the weight of the teacher's label.
        gradient_scale: beta, multiplies the gradient from a separate head into the backbone; shared
            and affine ignore it. Under Adam only w * beta matters.
        label_scale: alpha; the target is min(alpha * p, 1).
        hard_label_weight: weight with which the distillation head learns the hard label too (the
            auxiliary tower of Rec-Distill, arXiv 2605.29755).
        max_staleness_hours: older scores (event time less the snapshot's high-water mark) count as
            missing.
        staleness_half_life_hours: the weight of a score halves in this time.
        gate_windows: scores are ignored in a window if, over this many windows before it, the
            teacher's log loss was significantly larger than the student's; null: never. See
            :mod:`recsys.distill.teacher_gate`.
        gate_deviations: how many standard errors are significant.
        adapter: for auxiliary_adapter: the adapter.
        peer_model: for co_distillation: the ranker that teaches.
    """

    mode: Annotated[str, AfterValidator(known_mode)] = "auxiliary"
    rows: Literal["own", "scores_elsewhere", "all", "auto"] = "own"
    candidates: bool = True
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
        """The mode's definition."""
        return MODES[self.mode]

    @property
    def is_plain(self) -> bool:
        """Whether there is no teacher, so that the student is only its ranker."""
        return self.way.teacher is Teacher.NOBODY

    @property
    def reads_scores(self) -> bool:
        """Whether the mode needs the teacher's scores."""
        return self.way.teacher is Teacher.SCORES

    @property
    def has_peer(self) -> bool:
        """Whether a ranker of ``peer_model`` is trained with the student and teaches it."""
        return self.way.teacher is Teacher.PEER

    @property
    def has_own_head(self) -> bool:
        """Whether a separate head learns the soft label."""
        return self.way.head is SoftHead.OWN

    @property
    def has_adapted_head(self) -> bool:
        """Whether another head learns the adapter's prediction."""
        return self.way.adapts and self.adapter.kind == "extra_head"

    @property
    def target_is_adapted(self) -> bool:
        """Whether the soft label is the adapter's prediction instead of the teacher's."""
        return self.way.adapts and self.adapter.kind == "replace"


def overlaid(base: S, *changes: S | None) -> S:
    """``base`` with every key that ``changes`` set, where the last one wins; nested settings are
    merged key by key. The result counts as loaded from where ``base`` was."""
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
