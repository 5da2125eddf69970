"""The bootstrap resamples whole groups and both arms alike."""

import numpy as np
import pytest

from recsys.evaluation.comparison import bootstrap_differences, compare, ne_differences, seed_tests
from recsys.evaluation.metrics import METRICS, compute_metrics, probabilities


def stream(rows: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    truth = generator.normal(-1, 1, size=rows)
    labels = (generator.random(rows) < probabilities(truth)).astype(np.float32)
    return truth, labels, generator.integers(0, 200, size=rows)


def test_identical_arms_have_interval_zero() -> None:
    logits, labels, groups = stream()
    for one in compare([logits], [logits], labels, groups, samples=50, confidence=0.95, seed=1):
        assert one.difference == one.low == one.high == 0.0
        assert one.t_test_p is None


def test_equally_good_arms_cover_zero_and_better_arm_does_not() -> None:
    truth, labels, groups = stream()
    generator = np.random.default_rng(6)
    noisy, other = (truth + generator.normal(size=len(truth)) for _ in range(2))
    same = {c.metric: c for c in compare([noisy], [other], labels, groups, 200, 0.99, seed=1)}
    better = {c.metric: c for c in compare([noisy], [truth], labels, groups, 200, 0.99, seed=1)}
    assert same["ne"].low < 0 < same["ne"].high
    assert same["auc"].low < 0 < same["auc"].high
    assert better["ne"].high < 0
    assert better["auc"].low > 0


def test_one_draw_equals_metrics_of_repeated_rows() -> None:
    truth, labels, groups = stream(600)
    first, second = truth + 0.3, np.round(truth, 1)
    differences = bootstrap_differences([first], [second], labels, groups, samples=1, seed=9)
    names = np.unique(groups)
    draw = np.random.default_rng(9).integers(len(names), size=len(names))
    chosen = [np.flatnonzero(groups == names[index]) for index in draw]
    rows = np.concatenate(chosen)
    copies = np.concatenate([np.full(len(part), copy) for copy, part in enumerate(chosen)])
    a, b = (
        compute_metrics(logits[rows], labels[rows], copies).as_dict() for logits in (first, second)
    )
    assert differences[0] == pytest.approx([b[metric] - a[metric] for metric in METRICS], abs=1e-10)


def test_ne_of_many_models_comes_from_the_draws_of_two_arms() -> None:
    truth, labels, groups = stream(600)
    plain = [truth + 0.3, truth - 0.2]
    others = [[truth], [np.round(truth, 1), truth / 2]]
    found = ne_differences(plain, others, labels, groups, samples=100, seed=9)
    for place, model in enumerate(others):
        pair = [model[0]] * 2 if len(model) == 1 else model
        expected = bootstrap_differences(plain, pair, labels, groups, samples=100, seed=9)
        assert found[:, place] == pytest.approx(expected[:, METRICS.index("ne")], abs=1e-12)
    nothing = np.zeros(0)
    empty = ne_differences([nothing], [[nothing]], nothing, nothing.astype(int), 3, seed=1)
    assert np.isnan(empty).all()


def test_same_seed_same_interval() -> None:
    truth, labels, groups = stream(500)
    runs = [compare([truth], [truth / 2], labels, groups, 20, 0.9, seed=4) for _ in range(2)]
    assert runs[0] == runs[1]


def test_seed_tests_see_a_steady_difference() -> None:
    first = np.array([0.80, 0.81, 0.79, 0.82])
    t_test_p, wilcoxon_p = seed_tests(first, first - np.array([0.010, 0.011, 0.009, 0.012]))
    assert t_test_p is not None and t_test_p < 0.01
    assert wilcoxon_p == pytest.approx(0.125)


def test_unpaired_arms_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of seeds"):
        compare([np.zeros(2)], [], np.array([0, 1]), np.arange(2), 10, 0.95, 1)
