"""What trees know of ids, against counting in plain Python."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.baselines.statistics import PastStatistics

EXAMPLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), max_size=12)
SMOOTHING, RATE = 4.0, 0.1


def frame(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    schema = {"user": pl.Int64, "ad": pl.Int32, "label": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


@given(st.lists(EXAMPLES, max_size=4), EXAMPLES)
@settings(max_examples=40)
def test_counts_and_rates_are_those_of_the_examples_added_so_far(
    added: list[list[tuple[int, int, int]]], asked: list[tuple[int, int, int]]
) -> None:
    statistics = PastStatistics(["user", "ad"], SMOOTHING, RATE)
    for rows in added:
        statistics.add(frame(rows))
    past = [row for rows in added for row in rows]
    mean = sum(row[2] for row in past) / len(past) if past else RATE
    expected = []
    for row in asked:
        values = []
        for column in (0, 1):
            labels = [one[2] for one in past if one[column] == row[column]]
            rate = (sum(labels) + SMOOTHING * mean) / (len(labels) + SMOOTHING)
            values += [len(labels), rate]
        expected.append(values)
    found = statistics.of(frame(asked))
    assert found == pytest.approx(np.array(expected).reshape(len(asked), 4), rel=1e-5)
