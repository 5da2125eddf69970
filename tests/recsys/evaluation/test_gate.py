"""A student that loses to its baseline is not served."""

import math

import pytest

from recsys.evaluation.gate import Against, GateSettings, Limit, Verdict, decide, judge
from recsys.evaluation.model_table import ModelRow


def models(**ne: float) -> list[ModelRow]:
    names = {"logistic": "logistic (own rows)", "base": "base rate"}
    return [
        ModelRow("feed", "click", names.get(name, name), {"ne": value}, 0.0, 0.0, 0.0)
        for name, value in ne.items()
    ]


@pytest.mark.parametrize(
    ("distilled", "allowed", "passes"),
    [(0.92, 0.0, True), (0.93, 0.0, True), (0.9301, 0.0, False), (0.94, 0.02, True)],
)
def test_the_best_arm_must_not_lose_to_the_baseline(
    distilled: float, allowed: float, passes: bool
) -> None:
    rows = models(plain=0.95, distilled=distilled, logistic=0.93, teacher=0.9, oracle=0.7)
    verdict = judge(rows, GateSettings(largest_ne_increase=allowed))
    assert (verdict.arm, verdict.passes) == ("distilled", passes)
    assert "logistic (own rows)" in verdict.why


def test_another_baseline_or_none_may_be_the_gate() -> None:
    rows = models(plain=0.95, logistic=0.93, base=1.0)
    assert judge(rows, GateSettings(baseline="base rate")).passes
    assert judge(rows, GateSettings(baseline=None)).passes
    assert not judge(rows, GateSettings()).passes


def test_where_the_baseline_was_not_run_the_best_arm_passes_and_says_so() -> None:
    verdict = judge(models(plain=0.95, distilled=0.9), GateSettings())
    assert verdict.passes
    assert "no baseline" in verdict.why


def test_a_student_without_a_metric_does_not_pass() -> None:
    assert not judge(models(plain=math.nan, distilled=math.nan), GateSettings()).passes


def test_an_arm_without_a_metric_is_not_chosen() -> None:
    assert judge(models(plain=math.nan, distilled=0.9), GateSettings()).arm == "distilled"


GOOD = Verdict("distilled", 0.9, True, "distilled has NE 0.9000")


def against(difference: float, half: float, is_smaller: bool = False) -> Against:
    low, high = difference - half, difference + half
    return Against("champion version 3", 1000, 0.91, difference, low, high, is_smaller)


@pytest.mark.parametrize(
    ("other", "passes"),
    [
        (None, True),
        (against(-0.01, 0.005), True),
        (against(-0.01, 0.02), False),
        (against(0.01, 0.005), False),
        (against(0.0, 0.0005), False),
        (against(0.0, 0.0005, is_smaller=True), True),
        (against(0.001, 0.0005, is_smaller=True), False),
    ],
)
def test_the_champion_stays_unless_the_new_one_is_surely_better_or_smaller_and_not_worse(
    other: Against | None, passes: bool
) -> None:
    found = decide(GOOD, GateSettings(), None, [], other)
    assert found.passes == passes
    assert ("against champion version 3 on 1,000 rows" in found.why) == (other is not None)
    assert not decide(Verdict("plain", 1.0, False, "loses"), GateSettings(), None, [], other).passes


@pytest.mark.parametrize(
    ("calibration", "limit", "passes", "said"),
    [
        (1.1, None, True, ""),
        (1.2, None, False, "its mean prediction is 1.200 of the click rate, at most 15% off"),
        (0.8, None, False, "0.800 of the click rate"),
        (None, 5.0, True, ""),
        (None, 3.0, False, "memory in MB is 4, the budget 3"),
    ],
)
def test_a_champion_is_calibrated_and_within_its_budget(
    calibration: float | None, limit: float | None, passes: bool, said: str
) -> None:
    limits = [Limit("memory in MB", 4.0, limit)]
    found = decide(GOOD, GateSettings(), calibration, limits, None)
    assert found.passes == passes and found.why.startswith(GOOD.why) and said in found.why
