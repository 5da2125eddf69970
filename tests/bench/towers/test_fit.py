"""The fit of the slow-network runs: its terms are the cost model's, and it finds constants that it
is given."""

from dataclasses import replace

import pytest

from bench.towers.cases import RATES_MBIT, SHAPES, contenders
from bench.towers.fit import UNITS, Fitted, fit, is_fitted, modelled, predicted_by_others, terms
from bench.towers.runs import Run, operating_rate, step_ms_at

CORES = 2
COSTS = dict(zip(UNITS, (20.0, 5.0, 150.0, 600.0, 1.1, 0.1, 0.3), strict=True))


def runs_of(fitted: Fitted) -> list[Run]:
    """Every run of the benchmark, its time that of the model."""
    found = []
    for shape in SHAPES:
        for architecture, rates in RATES_MBIT.items():
            for rate in rates:
                for one in contenders(architecture):
                    place = architecture, shape.hosts, shape.ranks_per_host, one.name, rate
                    found.append(Run(*place, 1.0, (1.0, 1.0), 1.0, 1.0, 1.0))
    return [replace(run, step_ms=fitted.predict(run)) for run in found]


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
