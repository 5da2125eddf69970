"""The headroom table: every model on the same rows, and a margin that does not hold is counted."""

from pathlib import Path

import numpy as np
import pytest

from bench.data.headroom import (
    LOGISTIC,
    MODELS,
    ORACLE,
    STUDENT,
    TREES,
    Margin,
    Table,
    headroom,
    report,
)
from recsys.data.settings import DomainSettings, SyntheticSettings


@pytest.mark.slow
def test_every_model_is_measured_on_the_rows_of_each_student(tmp_path: Path) -> None:
    domains = [DomainSettings(name=name, share=0.5, base_rate=0.2) for name in ("feed", "video")]
    stream = SyntheticSettings(rows=3_000, windows=5, users=50, ads=20, domains=domains)
    found = headroom(stream, tmp_path)
    assert set(found) == set(MODELS)
    assert all(set(values) == {"feed", "video"} for values in found.values())
    assert all(np.isfinite(value) for values in found.values() for value in values.values())
    assert found[ORACLE]["feed"] == min(values["feed"] for values in found.values())


def table(**values: float) -> Table:
    return {model: {"feed": values.get(model.split(",")[0], 0.9)} for model in MODELS}


def test_a_margin_is_measured_against_the_best_of_the_others() -> None:
    found = {LOGISTIC: {"feed": 0.8}, TREES: {"feed": 0.9}, STUDENT: {"feed": 0.76}}
    assert Margin(STUDENT, (LOGISTIC, TREES), 1.0).measured(found, "feed") == pytest.approx(5.0)


def test_the_report_counts_the_seeds_in_which_a_margin_holds() -> None:
    text = report({1: table(student=0.85), 2: table(student=0.9)})
    start = f"| {STUDENT}, than {LOGISTIC} |"
    line = next(row for row in text.splitlines() if row.startswith(start))
    assert line == f"| {STUDENT}, than {LOGISTIC} | 1 | 5.56 | 0.00 | 1 of 2 |"
