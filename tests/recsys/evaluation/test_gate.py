"""A student that loses to its baseline is not served."""

import math

import pytest

from recsys.evaluation.gate import GateSettings, judge
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
