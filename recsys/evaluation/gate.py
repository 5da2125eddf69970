"""Whether a student is worth serving: its best arm beside a baseline, on the same rows."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from recsys.config import Settings
from recsys.evaluation.model_table import BASELINES, NOT_ARMS, ModelRow

BaselineLabel = Literal[
    "base rate",
    "logistic (own rows)",
    "logistic (all rows)",
    "trees (own rows)",
    "trees (all rows)",
]


class GateSettings(Settings):
    """What a student must not lose to before it is served.

    ``baseline``: as it is called in the table; null: there is no gate. ``largest_ne_increase``: the
    fraction by which its NE may lie above the baseline's (0.01 is 1 %).
    """

    baseline: BaselineLabel | None = "logistic (own rows)"
    largest_ne_increase: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Verdict:
    """The arm of the lowest NE of a student, whether it may be served, and why in words."""

    arm: str
    ne: float
    passes: bool
    why: str

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def judge(rows: Sequence[ModelRow], settings: GateSettings) -> Verdict:
    """Judge the models of one student's main task."""
    by_name = {row.model: row.metrics["ne"] for row in rows}
    arms = {name: ne for name, ne in by_name.items() if name not in {*NOT_ARMS, *BASELINES}}
    arm = min(arms, key=lambda name: math.inf if math.isnan(arms[name]) else arms[name])
    ne = arms[arm]
    baseline = by_name.get(settings.baseline, math.nan) if settings.baseline else math.nan
    if not math.isfinite(ne):
        return Verdict(arm, ne, False, f"{arm} has no NE: its rows are all of one label")
    if not math.isfinite(baseline):
        return Verdict(arm, ne, True, f"{arm} has the lowest NE, {ne:.4f}; no baseline to hold to")
    apart = 100 * (ne / baseline - 1)
    side = "above" if apart > 0 else "below"
    why = f"{arm} has NE {ne:.4f}, {abs(apart):.1f} % {side} {settings.baseline}"
    return Verdict(arm, ne, ne <= baseline * (1 + settings.largest_ne_increase), why)
