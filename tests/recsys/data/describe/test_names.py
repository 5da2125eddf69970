"""What the words of a column's name say of it."""

import pytest

from recsys.data.describe import names


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("clickArticleId", ["click", "article", "id"]),
        ("click_article.id", ["click", "article", "id"]),
        ("userid", ["user", "id"]),
        ("C14", ["c", "14"]),
        ("grid", ["grid"]),
        ("", []),
    ],
)
def test_a_name_is_taken_apart_into_words(name: str, found: list[str]) -> None:
    assert names.words(name) == found


@pytest.mark.parametrize(
    "name",
    [
        "play_time_ms", "next_read_time", "session_size", "dwellTime", "attributed_time",
        "conversion_id", "conversion_timestamp", "scroll_percentage", "comment_stay_time",
    ],
)  # fmt: skip
def test_what_is_known_only_after_the_event_is_told_by_its_name(name: str) -> None:
    assert names.known_afterwards(name)


@pytest.mark.parametrize(
    "name",
    [
        "click_timestamp", "duration_ms", "session_id", "user_click_count_7d", "read_only",
        "time_since_last_click", "order_total_before", "play_store_category",
    ],
)  # fmt: skip
def test_what_is_known_before_is_not(name: str) -> None:
    assert not names.known_afterwards(name)
    assert not names.is_outcome(name)


@pytest.mark.parametrize("name", ["is_like", "num_clicks", "long_view", "helpful_vote", "liked"])
def test_outcomes_are_told_by_their_names(name: str) -> None:
    assert names.is_outcome(name)


@pytest.mark.parametrize(
    ("name", "is_domain"),
    [
        ("click_deviceGroup", True),
        ("tab", True),
        ("device_conn_type", False),
        ("app_domain", False),
    ],
)
def test_a_domain_is_called_like_one_as_a_whole(name: str, is_domain: bool) -> None:
    assert (names.domain_place(name) is not None) == is_domain
