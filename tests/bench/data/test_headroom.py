"""The headroom table: baselines use the past only, and a margin that does not hold is counted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.data.headroom import LOGISTIC, MODELS, STUDENT, TREES, Margin, Table, report
from bench.shared.baselines import Log, base_rate, logistic, read_log, trees
from recsys.data.ingest import ingest
from recsys.data.settings import DatasetSettings, DataSettings, SyntheticSettings


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """A stream of three windows."""
    folder = tmp_path_factory.mktemp("headroom")
    stream = SyntheticSettings(rows=3_000, windows=3, users=50, ads=20, contexts=20)
    dataset = DatasetSettings(format="synthetic", synthetic=stream)
    ingest(DataSettings(), dataset, folder / "windows", folder / "oracle")
    return read_log(folder / "windows")


@pytest.mark.parametrize("baseline", [base_rate, logistic, trees])
def test_a_baseline_predicts_its_rows_from_what_was_known_before_their_window(
    log: Log, baseline: Callable[[Log, NDArray[np.bool_]], NDArray[np.float64]]
) -> None:
    own = log.domain == 0
    logits = baseline(log, own)
    assert np.isfinite(logits[own]).all() and np.isnan(logits[~own]).all()
    for window in (1, 2):
        later = log.learnt >= window
        changed = replace(log, label=np.where(later | ~own, 1.0 - log.label, log.label))
        before = own & (log.window <= window)
        assert np.array_equal(baseline(changed, own)[before], logits[before])


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
