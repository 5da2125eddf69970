"""Ranks that each do whole jobs of their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import InputError
from recsys.training import ranks
from recsys.training.launch_settings import LaunchSettings
from recsys.training.side_by_side import launch_side_by_side, share_out

COSTS = st.lists(st.floats(0, 1e6), max_size=12)


@given(COSTS, st.integers(1, 5))
def test_each_place_is_in_one_share_and_no_rank_has_more_than_one_item_too_many(
    costs: list[float], count: int
) -> None:
    shares = share_out(costs, count)
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    sums = [sum(costs[place] for place in share) for share in shares]
    assert max(sums) - min(sums) <= max(costs, default=0.0) * (1 + 1e-9)


def squares(items: list[int], shown: bool, offset: int) -> dict[str, tuple[int, int, int, bool]]:
    return {
        str(item): (offset + item**2, ranks.rank(), ranks.world_size(), shown) for item in items
    }


def test_every_rank_is_alone_with_its_share_and_one_shows_progress() -> None:
    settings = LaunchSettings(world_size=2)
    found = launch_side_by_side(squares, [1, 2, 3, 4], [4, 3, 2, 1], (10,), settings)
    assert {name: one[0] for name, one in found.items()} == {"1": 11, "2": 14, "3": 19, "4": 26}
    assert {one[1:3] for one in found.values()} == {(0, 1)}
    assert sorted(name for name, one in found.items() if one[3]) == ["1", "4"]


def refuse(items: list[int], shown: bool) -> dict[str, int]:
    if not shown:
        raise InputError(f"item {items[0]} is wrong")
    return {}


def test_a_rank_that_refuses_ends_the_others_with_its_own_line() -> None:
    with pytest.raises(InputError, match="item 2 is wrong"):
        launch_side_by_side(refuse, [1, 2], [2, 1], (), LaunchSettings(world_size=2))
