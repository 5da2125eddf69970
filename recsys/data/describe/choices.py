"""How ingest should use an unknown log."""

from dataclasses import dataclass, field

from recsys.data.describe.columns import Column
from recsys.data.describe.moments import Moment
from recsys.data.describe.reading import Span, Survey
from recsys.data.settings import (
    CategoricalColumnSettings,
    CounterSettings,
    DomainColumnSettings,
    ExplodeSettings,
    LabelSettings,
    NegativeSettings,
)

LARGEST_DOMAINS = 3  # number of domains that get a student


@dataclass(frozen=True)
class Use:
    """The role of a column (empty: not used), and why."""

    role: str
    why: str = ""


@dataclass
class Choices:
    """How ingest should use a log; ``warnings`` are what the user should check.

    ``attribution_hours`` is how long to wait for a positive where labels have a time. ``left_out``
    lists the columns that would mislead a model, by reason.
    """

    survey: Survey
    columns: list[Column]
    time: Moment
    span: Span
    window_hours: float
    label: LabelSettings | None = None
    further_labels: list[str] = field(default_factory=list)
    label_time: Moment | None = None
    attribution_hours: int = 0
    explode: ExplodeSettings | None = None
    negatives: NegativeSettings | None = None
    group: str | None = None
    domain: DomainColumnSettings | None = None
    dense: list[str] = field(default_factory=list)
    categorical: list[CategoricalColumnSettings] = field(default_factory=list)
    counters: list[CounterSettings] = field(default_factory=list)
    base_rate: float = 0.0
    uses: dict[str, Use] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def students(self) -> list[str]:
        """The domains that are large enough for their own student, largest first."""
        if self.domain is None:
            return ["all"]
        return list(self.domain.values.values())[:LARGEST_DOMAINS]
