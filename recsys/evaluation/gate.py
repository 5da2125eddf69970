"""The gate: whether a student's best arm is worth serving, compared with a baseline on the same
rows."""

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
    """What a student must achieve before it is served.

    Attributes:
        baseline: the model in the table to which it must not lose; null: none.
        largest_ne_increase: fraction by which its NE may be above the baseline's (0.01 is 1 %).
        largest_calibration_error: how far its calibrated mean prediction may be from the last
            window's click rate, as a fraction of it; null: no limit.
        largest_cheaper_ne_increase: the interval of the paired NE difference from the current
            champion must be below 0; for a smaller model, its upper end may be above 0 by this
            fraction of NE.
    """

    baseline: BaselineLabel | None = "logistic (own rows)"
    largest_ne_increase: float = Field(default=0.0, ge=0)
    largest_calibration_error: float | None = Field(default=0.15, gt=0)
    largest_cheaper_ne_increase: float = Field(default=0.001, ge=0)


@dataclass(frozen=True)
class Verdict:
    """A student's arm with the lowest NE, whether it may be served, and why, in words."""

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
        return Verdict(arm, ne, False, f"{arm} has no NE: its rows all have the same label")
    if not math.isfinite(baseline):
        return Verdict(arm, ne, True, f"{arm} has the lowest NE, {ne:.4f}; no baseline is set")
    apart = 100 * (ne / baseline - 1)
    side = "above" if apart > 0 else "below"
    why = f"{arm} has NE {ne:.4f}, {abs(apart):.1f} % {side} {settings.baseline}"
    return Verdict(arm, ne, ne <= baseline * (1 + settings.largest_ne_increase), why)


@dataclass(frozen=True)
class Against:
    """A student against the present champion on the rows that both have predicted: the NE
    difference, its interval, and whether the student is smaller."""

    champion: str
    rows: int
    champion_ne: float
    difference: float
    low: float
    high: float
    is_smaller: bool


@dataclass(frozen=True)
class Limit:
    """A cost of a student, and its upper limit; None: no limit."""

    name: str
    value: float
    most: float | None


def decide(
    verdict: Verdict,
    settings: GateSettings,
    calibration: float | None,
    limits: Sequence[Limit],
    against: Against | None,
) -> Verdict:
    """``verdict``, which covers the baseline, extended by all other requirements of a champion.

    Args:
        calibration: mean prediction over click rate on the last window; None: unknown.
        limits: the student's budget.
        against: comparison with the champion; None: there is no champion, or it has predicted none
            of these rows.
    """
    failed: list[str] = []
    said: list[str] = []
    bound = settings.largest_calibration_error
    if calibration is not None and bound is not None and abs(calibration - 1) > bound:
        failed.append(
            f"its mean prediction is {calibration:.3f} of the click rate, at most {bound:.0%} off "
            f"is allowed"
        )
    failed += [
        f"{one.name} is {one.value:,.4g}, the budget {one.most:,.4g}"
        for one in limits
        if one.most is not None and one.value > one.most
    ]
    if against is not None:
        text = (
            f"NE {against.difference:+.5f} [{against.low:+.5f}, {against.high:+.5f}] against "
            f"{against.champion} on {against.rows:,} rows"
        )
        slack = settings.largest_cheaper_ne_increase * against.champion_ne
        if against.high < 0 or (against.is_smaller and against.high <= slack):
            said.append(text)
        else:
            failed.append(f"{text}, which is not certainly better")
    why = "; ".join([verdict.why, *said, *failed])
    return Verdict(verdict.arm, verdict.ne, verdict.passes and not failed, why)
