"""Of several ways to train the one of the lowest NE on early windows is taken."""

import math

import pytest

from recsys.distill.early_choice import lowest_ne, ne_by_other_windows
from recsys.distill.recipe import Recipe


def history(*nes: float) -> list[dict]:
    return [{"window": f"w{i}", "ne": ne, "rows": 10 * (i + 1)} for i, ne in enumerate(nes)]


def test_the_lowest_mean_ne_by_rows_wins_and_the_first_window_says_nothing() -> None:
    found = lowest_ne(
        {
            Recipe("own", 0.1): history(0.1, 0.9, 0.9),
            Recipe("own", 0.03): history(1.0, 0.7, 1.1),
            Recipe("all", 0.1): history(1.0, 1.1, 0.75),
        }
    )
    assert found.choice == Recipe("all", 0.1)
    assert found.as_json() == {
        "windows": ["w1", "w2"],
        "ne": {
            "own at 0.1": pytest.approx(0.9),
            "own at 0.03": pytest.approx((0.7 * 20 + 1.1 * 30) / 50),
            "all at 0.1": pytest.approx((1.1 * 20 + 0.75 * 30) / 50),
        },
    }
    assert str(found) == (
        "all at 0.1 (NE of w1 to w2: own at 0.1 0.9000, own at 0.03 0.9400, all at 0.1 0.8900)"
    )


def test_of_a_tie_or_of_nothing_known_the_first_is_taken() -> None:
    assert lowest_ne({0.1: history(1, 0.9), 0.03: history(1, 0.9)}).choice == 0.1
    unknown = lowest_ne({0.1: history(1, math.nan), 0.03: history(1, math.nan)})
    assert str(unknown) == "0.1 (NE of w1 to w1: 0.1 -, 0.03 -)"
    assert lowest_ne({0.1: history(1, math.nan), 0.03: history(1, 2.0)}).choice == 0.03


def test_no_window_has_a_say_in_the_choice_that_it_judges() -> None:
    histories = {"one": history(1, 0.9, 0.55, 0.9), "other": history(1, 0.8, 0.8, 0.8)}
    assert lowest_ne(histories).choice == "one"
    assert ne_by_other_windows(histories) == [0.9, 0.8, 0.9]
    assert ne_by_other_windows({"one": history(1, 0.9, math.nan, 0.7)})[::2] == [0.9, 0.7]
