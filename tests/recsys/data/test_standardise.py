"""Dense features are standardised by the windows before, and by nothing later."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recsys.data.standardise import Moments, Standard, standards

CLIP = 5.0


def windows(count: int, seed: int = 0) -> list[np.ndarray]:
    """Values [N, 2] of ``count`` windows of different sizes, the second feature sometimes
    missing."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        values = random.normal([3.0 + index, -1.0], [2.0, 0.5], size=(50 + 10 * index, 2))
        values[random.random(len(values)) < 0.3, 1] = np.nan
        found.append(values)
    return found


@given(
    arrays(np.float64, (7, 2), elements=st.floats(-1e3, 1e3)),
    arrays(np.float64, (4, 2), elements=st.floats(-1e3, 1e3)),
)
def test_moments_of_two_parts_are_those_of_both_together(a: np.ndarray, b: np.ndarray) -> None:
    joined, whole = Moments.of(a).plus(Moments.of(b)), Moments.of(np.concatenate([a, b]))
    assert joined.count == whole.count
    np.testing.assert_allclose(joined.mean, whole.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(joined.variance, whole.variance, rtol=1e-7, atol=1e-6)


def test_missing_values_do_not_count() -> None:
    moments = Moments.of(np.array([[1.0, np.nan], [3.0, 5.0], [5.0, np.nan]]))
    assert moments.count == [3, 1]
    assert moments.mean == [3.0, 5.0]
    assert moments.variance == [pytest.approx(8 / 3), 0.0]


def test_a_window_is_standardised_by_those_before_it_alone() -> None:
    drawn = windows(4)
    before = standards([Moments.of(values) for values in drawn], 2.0, CLIP)
    changed = [*drawn[:2], drawn[2] * 10, drawn[3] - 100]
    after = standards([Moments.of(values) for values in changed], 2.0, CLIP)
    assert before[:3] == after[:3]
    assert before[3] != after[3]


def test_an_endless_half_life_weighs_all_past_rows_alike_and_a_short_one_the_last_window() -> None:
    drawn = windows(4)
    moments = [Moments.of(values) for values in drawn]
    past = np.concatenate(drawn[:3])
    endless = standards(moments, 1e12, CLIP)[3]
    np.testing.assert_allclose(endless.mean, np.nanmean(past, axis=0), rtol=1e-6)
    np.testing.assert_allclose(endless.deviation, np.nanstd(past, axis=0), rtol=1e-6)
    short = standards(moments, 0.01, CLIP)[3]
    np.testing.assert_allclose(short.mean, np.nanmean(drawn[2], axis=0), rtol=1e-6)


def test_a_window_counts_half_as_much_after_a_half_life() -> None:
    moments = [Moments([8], [0.0], [1.0]), Moments([4], [1.0], [1.0]), Moments([1], [9.0], [1.0])]
    assert standards(moments, 1.0, CLIP)[2].mean == [pytest.approx(0.5)]  # 4 of 8, and 4


def test_what_is_applied_is_clipped_and_missing_values_stay_missing() -> None:
    standard = Standard([1.0, 0.0], [2.0, 1.0], CLIP)
    frame = pl.DataFrame({"a": [1.0, 5.0, 1000.0], "b": [None, -99.0, float("nan")]})
    found = standard.apply(frame, ["a", "b"])
    assert found["a"].to_list() == [0.0, 2.0, CLIP]
    assert found["b"][0] is None
    assert found["b"][1] == -CLIP
    assert np.isnan(found["b"][2])


def test_a_constant_feature_stays_at_zero() -> None:
    constant = Moments.of(np.full((10, 1), 4.0))
    standard = standards([constant], 3.0, CLIP)[0]
    assert standard.apply(pl.DataFrame({"a": [4.0]}), ["a"])["a"].to_list() == [0.0]
