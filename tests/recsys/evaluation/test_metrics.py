"""Metrics equal their brute-force definitions."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from recsys.evaluation import metrics


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    logits = np.round(generator.normal(size=400), 1).astype(np.float32)  # rounded: many ties
    labels = (generator.random(400) < metrics.probabilities(logits - 1)).astype(np.float32)
    return logits, labels, generator.integers(0, 40, size=400)


def brute_auc(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    weights = np.ones(len(labels)) if weights is None else weights
    won = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pairs += weights[i] * weights[j]
            won += (
                weights[i] * weights[j] * ((logits[i] > logits[j]) + 0.5 * (logits[i] == logits[j]))
            )
    return won / pairs if pairs else float("nan")


def test_auc_counts_pairs(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, labels, _ = rows
    assert metrics.auc(logits, labels) == pytest.approx(brute_auc(logits, labels), abs=1e-12)


def test_weighted_auc_counts_weighted_pairs(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    logits, labels, groups = rows
    weights = (groups % 4).astype(np.float64)
    expected = brute_auc(logits, labels, weights)
    assert metrics.SortedScores(logits, labels).auc(weights) == pytest.approx(expected, abs=1e-12)


def test_a_row_of_weight_three_counts_as_three(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    weights = np.random.default_rng(4).integers(1, 4, size=400)
    repeated = metrics.compute_metrics(*(np.repeat(one, weights) for one in rows)).as_dict()
    found = metrics.compute_metrics(*rows, weights=weights.astype(np.float32)).as_dict()
    assert (found.pop("rows"), repeated.pop("rows")) == (400, weights.sum())
    del found["ece"], repeated["ece"]  # its bins are of equally many rows
    assert found == pytest.approx(repeated, abs=1e-12)
    logits, labels, _ = rows
    weight = weights.astype(np.float32)
    assert metrics.normalized_entropy(logits, labels, weight) == pytest.approx(found["ne"])
    assert metrics.calibration(logits, labels, weight) == pytest.approx(found["calibration"])


def test_the_calibration_error_weighs_rows() -> None:
    logits, labels = np.zeros(4), np.array([1, 1, 1, 0])  # one bin: all tie
    found = metrics.compute_metrics(logits, labels, np.arange(4), np.array([1.0, 1, 1, 3]))
    assert found.ece == pytest.approx(0)
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(0.25)


def test_infinite_logits_tie_with_each_other() -> None:
    infinity, labels = float("inf"), np.array([0, 1, 0, 1])
    logits = np.array([-infinity, -infinity, infinity, infinity])
    assert metrics.auc(logits, labels) == 0.5
    assert metrics.grouped_auc(logits, labels, np.zeros(4, dtype=np.int64)) == 0.5


def test_a_logit_that_is_nan_makes_the_auc_nan() -> None:
    logits, labels = np.array([np.nan, 0.1, 0.2, 0.3, 1, 2]), np.array([0, 1, 0, 1, 0, 1])
    groups = np.array([0, 0, 0, 0, 1, 1])
    assert np.isnan(metrics.auc(logits, labels))
    assert np.isnan(metrics.grouped_auc(logits, labels, groups))
    group_auc, _ = metrics.auc_by_group(logits, labels, groups)
    assert group_auc.tolist() == [pytest.approx(np.nan, nan_ok=True), 1.0]


def test_grouped_auc_averages_groups_of_two_classes(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    logits, labels, groups = rows
    values, sizes = [], []
    for group in np.unique(groups):
        mine = groups == group
        value = brute_auc(logits[mine], labels[mine])
        if not np.isnan(value):
            values.append(value)
            sizes.append(mine.sum())
    assert len(values) < 41
    assert metrics.grouped_auc(logits, labels, groups) == pytest.approx(
        np.average(values, weights=sizes), abs=1e-12
    )


def test_losses_and_calibration(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, labels, _ = rows
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    loss = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    rate = labels.mean(dtype=np.float64)
    background = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert metrics.log_loss(logits, labels) == pytest.approx(loss)
    assert metrics.normalized_entropy(logits, labels) == pytest.approx(loss / background)
    assert metrics.calibration(logits, labels) == pytest.approx(p.sum() / labels.sum())


def test_base_rate_has_normalized_entropy_one() -> None:
    labels = np.array([1.0, 0, 0, 0])
    assert metrics.normalized_entropy(np.full(4, np.log(1 / 3)), labels) == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [np.zeros(0), np.zeros(3), np.ones(3)])
def test_undefined_is_nan(labels: np.ndarray) -> None:
    value = metrics.compute_metrics(np.zeros(len(labels)), labels, np.arange(len(labels)))
    assert np.isnan([value.ne, value.auc, value.gauc]).all()


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([1000.0, -1000.0])
    assert metrics.log_loss(logits, np.array([0.0, 1.0])) == pytest.approx(1000.0)
    assert np.isfinite(metrics.probabilities(logits)).all()


def test_pr_auc_is_average_precision(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, labels, _ = rows
    expected = average_precision_score(labels, logits)
    assert metrics.pr_auc(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_recall_at_budget_counts_the_positives_that_are_shown() -> None:
    labels = np.zeros(40)
    labels[[0, 1, 7, 30]] = 1
    apart = -np.arange(40.0)
    assert metrics.RECALL_BUDGET * len(labels) == 4
    assert metrics.recall_at_budget(apart, labels) == 2 / 4
    assert metrics.recall_at_budget(-apart, labels) == 0.0
    # Rows 2 to 9 tie for the two places left: each is shown with probability 2 / 8
    ties = np.where((np.arange(40) >= 2) & (np.arange(40) < 10), -2.0, apart)
    assert metrics.recall_at_budget(ties, labels) == pytest.approx((2 + 2 / 8) / 4)
    assert metrics.recall_at_budget(np.zeros(40), labels) == pytest.approx(0.1)


def test_calibration_error_is_the_distance_of_rates_in_bins_of_equal_size() -> None:
    generator = np.random.default_rng(4)
    p = np.repeat(np.linspace(0.05, 0.95, metrics.CALIBRATION_BINS), 10)
    labels = generator.integers(0, 2, size=len(p)).astype(np.float32)
    logits, order = np.log(p / (1 - p)), generator.permutation(len(p))
    expected = np.abs(p.reshape(-1, 10).mean(axis=1) - labels.reshape(-1, 10).mean(axis=1)).mean()
    found = metrics.expected_calibration_error(logits[order], labels[order])
    assert found == pytest.approx(expected)
    constant = np.full(len(p), -1.0)  # one bin: its rows cannot be told apart
    away = abs(metrics.probabilities(constant)[0] - labels.mean())
    assert metrics.expected_calibration_error(constant, labels) == pytest.approx(away, abs=1e-6)


def test_a_logit_that_is_nan_makes_every_metric_nan() -> None:
    logits, labels = np.array([np.nan, 0.1, 0.2, 0.3, 1, 2]), np.array([0, 1, 0, 1, 0, 1])
    values = metrics.compute_metrics(logits, labels, np.array([0, 0, 0, 0, 1, 1])).as_dict()
    assert {name for name, value in values.items() if np.isnan(value)} == set(metrics.METRICS)


@pytest.mark.parametrize("groups", [[5, 3, 3, 9], [10**12, -4, -4, 10**15], []])
def test_places_are_those_among_the_distinct_groups(groups: list[int]) -> None:
    given = np.array(groups, dtype=np.int64)
    distinct, expected = np.unique(given, return_inverse=True)
    place, count = metrics.places_of(given)
    assert (place.tolist(), count) == (expected.tolist(), len(distinct))
