"""Counters know the bins before a row's own, however the log is cut into frames."""

import math
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.encoding import key_hashes
from recsys.data.names import EVENT_TIME
from recsys.data.settings import CounterSettings
from recsys.data.sources.base import LABEL, LABEL_TIME
from recsys.data.sources.counters import CounterState, add_counters, counter_names, values_by_key

MINUTE_MS = 60_000
Row = tuple[int, int, int, str | None, str]  # minute, minutes to the label, label, user, item
ROWS = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.integers(0, 90),
        st.integers(0, 1),
        st.sampled_from(["u", "v", None]),
        st.sampled_from("ab"),
    ),
    max_size=25,
)


def by_hand(rows: list[Row], counter: CounterSettings, keys: list[tuple[str | None, ...]]) -> list:
    """The slow way: each row looks at all others."""
    width = round(counter.bin_minutes)
    found = []
    for row, key in zip(rows, keys, strict=True):
        own = row[0] // width
        alike = [other for other, its in zip(rows, keys, strict=True) if its == key]
        features = []
        for hours in counter.hours:
            oldest = own - math.ceil(hours * 60 / counter.bin_minutes)
            past = range(oldest, own) if None not in key else range(0)
            clicks = sum(o[2] for o in alike if (o[0] + o[1]) // width in past)
            shown = sum(o[0] // width in past for o in alike)
            rate = (clicks + counter.prior_rows * counter.prior_rate) / (shown + counter.prior_rows)
            features += [math.log1p(clicks), math.log1p(shown), math.log(rate)]
        first = min(other[0] // width for other in alike)
        found.append([*features, math.log1p((own - first) * counter.bin_minutes / 60)])
    return found


def frame_of(rows: list[Row]) -> pl.DataFrame:
    """As ingest has them."""
    return pl.DataFrame(
        {
            EVENT_TIME: [row[0] * MINUTE_MS for row in rows],
            LABEL_TIME: [(row[0] + row[1]) * MINUTE_MS for row in rows],
            LABEL: [float(row[2]) for row in rows],
            "user": [row[3] for row in rows],
            "item": [row[4] for row in rows],
        },
        schema={EVENT_TIME: pl.Int64, LABEL_TIME: pl.Int64, LABEL: pl.Float32}
        | {"user": pl.String, "item": pl.String},
    )


@pytest.mark.parametrize("by", [["user"], ["user", "item"]])
@settings(max_examples=40, derandomize=True)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 25), max_size=3))
def test_counts_are_those_of_the_bins_before(
    by: list[str], rows: list[Row], cuts: list[int]
) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    frame = frame_of(rows)
    counter = CounterSettings(by=by, bin_minutes=20, hours=[1, 3])
    keys = [tuple(row[3:4] if by == ["user"] else row[3:]) for row in rows]
    state = [CounterState()]
    ends = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    found = pl.concat(
        add_counters(frame[start:stop], [counter], state) for start, stop in pairwise(ends)
    )
    wanted = np.array(by_hand(rows, counter, keys)).reshape(len(rows), 7)
    np.testing.assert_allclose(found.select(counter_names(counter)).to_numpy(), wanted, rtol=1e-9)


@pytest.mark.parametrize("by", [["user"], ["user", "item"]])
@settings(max_examples=40, derandomize=True)
@given(rows=ROWS)
def test_values_by_key_are_what_a_row_in_the_next_bin_would_get(
    by: list[str], rows: list[Row]
) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    counter = CounterSettings(by=by, bin_minutes=20, hours=[1, 3])
    state, known = CounterState(), [row for row in rows if row[0] + row[1] < 400]
    add_counters(frame_of(known), [counter], [state])
    found = values_by_key(counter, state, [])
    after = 20 * (max((row[0] // 20 for row in known), default=0) + 1)
    for user, item in [("u", "a"), ("v", "b"), (None, "a"), ("new", "b")]:
        new = (after, 0, 0, user, item)
        keys = [tuple(row[3:4] if by == ["user"] else row[3:]) for row in [*known, new]]
        wanted = by_hand([*known, new], counter, keys)[-1]
        asked = pl.DataFrame(
            {"user": [user], "item": [item]}, schema={"user": pl.String, "item": pl.String}
        )
        values = found.of(key_hashes(asked, by))[0]
        np.testing.assert_array_equal(values, np.array(wanted, np.float32))
