"""Groups of tables over ranks."""

from recsys.sharding.plan import spread_groups


def test_groups_stay_together_and_load_is_even() -> None:
    sizes = {"a": 5, "b": 5, "c": 6, "d": 3}
    ranks = spread_groups([["a", "b"], ["c"], ["d"]], sizes, 2)
    assert ranks == {"a": 0, "b": 0, "c": 1, "d": 1}
