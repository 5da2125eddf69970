"""What ingest is to make of an unknown log."""

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

LARGEST_DOMAINS = 3  # that get a student


@dataclass(frozen=True)
class Use:
    """What a column is used as (empty: not at all), and why."""

    role: str
    why: str = ""


@dataclass
class Choices:
    """What ingest is to make of a log; ``warnings`` are what a person should look at.

    ``attribution_hours``: how long a positive is waited for, where labels have a time.
    ``left_out``: the columns that would mislead a model, by reason.
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
        """The domains that are large enough for a student of their own, the largest first."""
        if self.domain is None:
            return ["all"]
        return list(self.domain.values.values())[:LARGEST_DOMAINS]
