"""A draw has the metrics of the rows that it repeats, whatever is drawn."""

import numpy as np
import pytest

from recsys.evaluation.metrics import (
    METRICS,
    calibration_bins,
    compute_metrics,
    probabilities,
)
from recsys.evaluation.resampling import resample

ROWS = 600
PLACE = {name: place for place, name in enumerate(METRICS)}


def stream() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels, users, and hours that cut users."""
    generator = np.random.default_rng(5)
    truth = generator.normal(-1, 1, size=ROWS)
    labels = (generator.random(ROWS) < probabilities(truth)).astype(np.float32)
    return truth, labels, generator.integers(0, 60, size=ROWS), np.arange(ROWS) // 40


def slow(
    logits: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    blocks: np.ndarray,
    samples: int,
    seed: int,
    weights: np.ndarray | None,
) -> np.ndarray:
    """Metrics [samples, len(METRICS)] of rows that are really repeated.

    A user who is drawn twice is two users; where blocks are hours, a user's rows stay together.
    """
    names, generator = np.unique(blocks), np.random.default_rng(seed)
    bins = calibration_bins(logits)
    found = []
    for _ in range(samples):
        drawn = generator.integers(len(names), size=len(names))
        rows = [np.flatnonzero(blocks == names[block]) for block in drawn]
        copies = np.concatenate([np.full(len(own), copy) for copy, own in enumerate(rows)])
        chosen = np.concatenate(rows)
        users = copies if blocks is groups else groups[chosen]
        own = None if weights is None else weights[chosen]
        values = compute_metrics(logits[chosen], labels[chosen], users, own).as_dict()
        each = np.ones(len(chosen)) if own is None else own
        excess = each * (probabilities(logits[chosen]) - labels[chosen])  # in the bins of all rows
        values["ece"] = np.abs(np.bincount(bins[chosen], weights=excess)).sum() / each.sum()
        found.append([values[metric] for metric in METRICS])
    return np.array(found)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("unit", ["user", "hour"])
def test_draws_equal_metrics_of_repeated_rows(unit: str, weighted: bool) -> None:
    truth, labels, users, hours = stream()
    weights = np.random.default_rng(6).uniform(0.5, 9, size=ROWS) if weighted else None
    models = {"smooth": truth + 0.3, "ties": np.round(truth, 1)}
    found = resample(
        {name: [one] for name, one in models.items()},
        labels,
        users,
        samples=70,  # more than are made at once
        seed=9,
        blocks=hours if unit == "hour" else None,
        weights=weights,
    )
    for name, logits in models.items():
        blocks = users if unit == "user" else hours
        expected = slow(logits, labels, users, blocks, 70, 9, weights)
        assert found[name] == pytest.approx(expected, abs=1e-12)


def test_a_model_that_is_not_ranked_has_what_needs_no_order() -> None:
    truth, labels, users, _ = stream()
    models = {"a": [truth], "b": [truth / 2]}
    found = resample(models, labels, users, 10, seed=1, ranked={"a"})
    whole = resample(models, labels, users, 10, seed=1)
    sums = [PLACE[name] for name in ("ne", "logloss", "calibration")]
    assert found["b"][:, sums] == pytest.approx(whole["b"][:, sums], abs=1e-15)
    assert np.isnan(np.delete(found["b"], sums, axis=1)).all()
    assert found["a"] == pytest.approx(whole["a"], abs=1e-15)


def test_training_seeds_are_drawn_too() -> None:
    """Seeds that differ widen an interval; those of a pair are drawn together."""
    truth, labels, users, _ = stream()
    seeds = [truth + shift for shift in (-1.0, 0.0, 1.0)]
    shifted = [one + 1e-9 for one in seeds]
    models = {"steady": [truth] * 3, "loose": seeds, "shifted": shifted, "single": [truth]}
    spread = {
        name: one[:, PLACE["calibration"]]
        for name, one in resample(models, labels, users, 200, seed=1).items()
    }
    assert spread["loose"].std() > 3 * spread["steady"].std()
    assert (spread["loose"] - spread["shifted"]).std() < 1e-6
    assert spread["steady"] == pytest.approx(spread["single"], abs=1e-12)
    with pytest.raises(ValueError, match="one or 3 seeds, got 2 of odd"):
        resample({"loose": seeds, "odd": seeds[:2]}, labels, users, 10, seed=1)


def test_one_block_says_nothing_about_others() -> None:
    truth, labels, users, _ = stream()
    one = np.zeros(ROWS, dtype=np.int64)
    assert np.isnan(resample({"a": [truth]}, labels, users, 10, 1, blocks=one)["a"]).all()
    nothing = np.zeros(0)
    assert np.isnan(resample({"a": [nothing]}, nothing, one[:0], 3, seed=1)["a"]).all()


def test_a_logit_that_is_nan_makes_every_draw_of_its_ranks_nan() -> None:
    truth, labels, users, hours = stream()
    truth[7] = np.nan
    for blocks in (None, hours):
        ranks = resample({"a": [truth]}, labels, users, 20, 1, blocks)["a"]
        assert np.isnan(ranks[:, [PLACE["auc"], PLACE["pr_auc"], PLACE["recall"]]]).all()
