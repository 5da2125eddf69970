"""A vocabulary grows by what was frequent in the past, and keeps what it gave."""

from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.vocabulary import UNKNOWN, Vocabulary, VocabularyGrowth


def grown(windows: list[dict[str, int]], table_rows: int, min_count: int) -> Vocabulary:
    growth = VocabularyGrowth(table_rows, min_count)
    for index, met in enumerate(windows):
        growth.grow(f"w{index}")
        growth.count(met)
    growth.grow(None)
    return growth.vocabulary


def test_a_value_has_a_row_from_the_window_after_it_was_frequent() -> None:
    vocabulary = grown([{"a": 3, "b": 2}, {"b": 1, "c": 9}, {"d": 3}], table_rows=9, min_count=3)
    texts = ["a", "b", "c", "d", "new"]
    assert vocabulary.rows_of(texts, "w0").tolist() == [UNKNOWN] * 5
    assert vocabulary.rows_of(texts, "w1").tolist() == [2, 1, 1, 1, 1]
    assert vocabulary.rows_of(texts, "w2").tolist() == [2, 4, 3, 1, 1]  # c was met more often
    assert vocabulary.rows_of(texts).tolist() == [2, 4, 3, 5, 1]


def test_table_rows_bound_it_and_the_first_ones_stay() -> None:
    vocabulary = grown([{"b": 5, "a": 5, "c": 4}, {"d": 100}], table_rows=4, min_count=1)
    assert vocabulary.rows_of(["a", "b", "c", "d"]).tolist() == [2, 3, 1, 1]
    assert grown([{"a": 9}], table_rows=2, min_count=1).rows_of(["a"]).tolist() == [UNKNOWN]


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 4)), max_size=6),
    st.integers(2, 9),
    st.integers(1, 5),
)
def test_rows_never_change_and_know_no_later_window(
    windows: list[dict[str, int]], table_rows: int, min_count: int
) -> None:
    vocabulary, texts = grown(windows, table_rows, min_count), list("abcdefgh")
    last = vocabulary.rows_of(texts)
    assert last.max() < table_rows
    for index in range(len(windows)):
        now = vocabulary.rows_of(texts, f"w{index}")
        assert all(row in (UNKNOWN, end) for row, end in zip(now, last, strict=True))
        alone = grown([*windows[:index], {}], table_rows, min_count)
        assert now.tolist() == alone.rows_of(texts, f"w{index}").tolist()
