"""The fit of the slow-network runs: its terms are the cost model's, and it finds constants that it
is given."""

from dataclasses import replace

import pytest

from bench.towers.cases import RATES_MBIT
from bench.towers.fit import Fitted, fit, is_fitted, modelled, predicted_by_others, terms
from bench.towers.runs import operating_rate, step_ms_at
from tests.support.tower_runs import CORES, COSTS, runs_of


def test_a_step_is_the_products_of_terms_and_costs() -> None:
    fitted = Fitted(COSTS | {"hidden": 0.0}, CORES)
    for run in modelled(runs_of(fitted)):
        if run.rate_mbit == min(filter(None, RATES_MBIT["dcn"])):
            continue  # there ids that travel ahead are not hidden whole
        products = sum(a * b for a, b in zip(terms(run, CORES), COSTS.values(), strict=False))
        assert products == pytest.approx(fitted.predict(run))


def test_the_fit_predicts_runs_of_the_model_that_it_has_not_seen() -> None:
    truth = Fitted(COSTS, CORES)
    runs = modelled(runs_of(truth))
    found = fit([run for run in runs if is_fitted(run)], CORES)
    assert max(abs(found.predict(run) / run.step_ms - 1) for run in runs) < 0.02


def test_a_part_is_predicted_without_its_own_runs() -> None:
    runs = modelled(runs_of(Fitted(COSTS, CORES)))
    odd = [
        replace(run, step_ms=9 * run.step_ms) if run.cluster == ("dcn", 8) else run for run in runs
    ]
    for run, found in zip(
        odd, predicted_by_others(odd, CORES, lambda run: run.cluster == ("dcn", 8)), strict=True
    ):
        if run.cluster == ("dcn", 8):
            assert found == pytest.approx(run.step_ms / 9, rel=0.02)


def test_the_operating_rate_is_where_the_share_is_exposed() -> None:
    flat: dict[float | None, float] = {
        rate: 200 + 40_000 / rate for rate in (100.0, 200.0, 400.0, 800.0)
    }
    flat[None] = 200.0
    step_ms = step_ms_at(flat, operating_rate(flat))
    assert (step_ms - 200) / step_ms == pytest.approx(0.275, abs=1e-3)


def test_nothing_is_fitted_on_no_runs() -> None:
    runs = [run for run in runs_of(Fitted(COSTS, CORES)) if run.cluster == ("dcn", 2)]
    assert predicted_by_others(runs, CORES, lambda run: run.cluster) == []
    with pytest.raises(ValueError, match="no runs to fit"):
        fit([], CORES)
