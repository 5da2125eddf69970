"""Past-only counting features: they use nothing from a row's own time bin or later ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.encoder_format import ValuesByKey
from recsys.data.encoding import key_hashes
from recsys.data.names import EVENT_TIME, OWN
from recsys.data.settings import CounterSettings
from recsys.data.sources.base import LABEL, LABEL_TIME
from recsys.units import MINUTES_PER_HOUR

MS_PER_MINUTE = 60_000
BIN, LABEL_BIN = f"{OWN}bin", f"{OWN}label_bin"
TOTAL, FIRST, KEY = f"{OWN}total", f"{OWN}first", f"{OWN}key"
BINS = 1 << 32  # more than any log has: 8,000 years of minutes


def counter_names(counter: CounterSettings) -> list[str]:
    """The names of a counter's features, in order."""
    name = "_".join(counter.by) if counter.name is None else counter.name
    names: list[str] = []
    for hours in counter.hours:
        names.append(f"{name}_clicks_{hours:g}h")
        if counter.examples:
            names += [f"{name}_examples_{hours:g}h", f"{name}_log_rate_{hours:g}h"]
    return [*names, f"{name}_age"]


@dataclass
class CounterState:
    """What a counter knows about earlier rows, by key: examples and clicks per bin as far back as
    its hours reach, the bin in which each key was first seen, and the newest bin of all."""

    examples: pl.DataFrame | None = None
    clicks: pl.DataFrame | None = None
    first: pl.DataFrame | None = None
    newest: int = 0


def add_counters(
    frame: pl.DataFrame, counters: Sequence[CounterSettings], states: Sequence[CounterState]
) -> pl.DataFrame:
    """``frame`` (sorted by event time) with the features of each counter.

    ``states`` hold what is known from earlier frames, whose rows must all be earlier; they are
    updated.
    """
    for counter, state in zip(counters, states, strict=True):
        frame = _add(frame, counter, state)
    return frame


def counters_of_candidates(
    candidates: pl.DataFrame,
    frame: pl.DataFrame,
    counters: Sequence[CounterSettings],
    states: Sequence[CounterState],
) -> pl.DataFrame:
    """``candidates`` with the features that rows of the log would have at their times; they are
    counted nowhere.

    Args:
        candidates: rows later than those behind ``states`` and not later than the end of ``frame``,
            or than the log if ``frame`` is empty.
        frame: the log's rows that :func:`add_counters` takes next.
    """
    for counter, state in zip(counters, states, strict=True):
        by = list(dict.fromkeys(counter.by))
        _, examples, clicks, seen = _counted(frame, counter, state)
        own = candidates.select(*by, (pl.col(EVENT_TIME) // _bin_ms(counter)).alias(BIN))
        rows = own.join(seen, on=by, how="left", nulls_equal=True, maintain_order="left")
        # A key that the log has not seen yet is new with this row
        rows = rows.with_columns(
            pl.col(KEY).cast(pl.Int64).fill_null(-1), pl.min_horizontal(FIRST, BIN).alias(FIRST)
        )
        features = _features(rows, examples, clicks, seen, counter)
        candidates = candidates.with_columns(
            feature.alias(name)
            for name, feature in zip(counter_names(counter), features, strict=True)
        )
    return candidates


def _bin_ms(counter: CounterSettings) -> int:
    return round(counter.bin_minutes * MS_PER_MINUTE)


def _counted(
    frame: pl.DataFrame, counter: CounterSettings, state: CounterState
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """``frame``'s keys and bins; and, of its rows and those behind ``state``, the examples and
    clicks per bin and when each key was first seen."""
    bin_ms = _bin_ms(counter)
    by = list(dict.fromkeys(counter.by))
    keyed = frame.select(
        *by,
        LABEL,
        (pl.col(EVENT_TIME) // bin_ms).alias(BIN),
        (pl.col(LABEL_TIME) // bin_ms).alias(LABEL_BIN),
    )
    labelled = keyed.with_columns(pl.col(LABEL_BIN).alias(BIN))
    examples = _bins(keyed, by, pl.len(), state.examples)
    clicks = _bins(labelled, by, pl.col(LABEL).cast(pl.Float64).sum(), state.clicks)
    seen = keyed.select(*by, pl.col(BIN).alias(FIRST))
    seen = seen if state.first is None else pl.concat([state.first, seen])
    return keyed, examples, clicks, seen.group_by(by).agg(pl.col(FIRST).min()).with_row_index(KEY)


def _add(frame: pl.DataFrame, counter: CounterSettings, state: CounterState) -> pl.DataFrame:
    by = list(dict.fromkeys(counter.by))
    keyed, examples, clicks, seen = _counted(frame, counter, state)
    rows = keyed.join(seen, on=by, how="left", nulls_equal=True, maintain_order="left")
    features = _features(rows, examples, clicks, seen, counter)
    if frame.height:
        # No later row looks back further
        state.newest = keyed[BIN][-1]
        reached = pl.col(BIN) >= state.newest - max(_reach(counter), default=0)
        examples, clicks = examples.filter(reached), clicks.filter(reached)
    state.examples, state.clicks, state.first = examples, clicks, seen.drop(KEY)
    return frame.with_columns(
        feature.alias(name) for name, feature in zip(counter_names(counter), features, strict=True)
    )


def values_by_key(
    counter: CounterSettings, state: CounterState, null_values: Sequence[str]
) -> ValuesByKey:
    """The counter's features for every key so far, for a row in the bin after the newest one."""
    by = list(dict.fromkeys(counter.by))
    names = counter_names(counter)
    unseen = _unseen(counter)
    if state.first is None or state.examples is None or state.clicks is None:
        none = np.zeros((0, len(names)), np.float32)
        return ValuesByKey(names, by, unseen, np.zeros(0, np.uint64), none)
    seen = state.first.with_row_index(KEY)
    rows = seen.with_columns(pl.lit(state.newest + 1, dtype=pl.Int64).alias(BIN))
    found = _features(rows, state.examples, state.clicks, seen, counter)
    values = np.stack([one.to_numpy() for one in found], axis=1).astype(np.float32)
    keys, first = np.unique(key_hashes(seen, by, null_values), return_index=True)
    return ValuesByKey(names, by, unseen, keys, values[first])


def _unseen(counter: CounterSettings) -> list[float]:
    """The features for an unseen key, rounded as in :func:`_features`."""
    rate = math.log(counter.prior_rows * counter.prior_rate / counter.prior_rows)
    return [rate if "_log_rate_" in name else 0.0 for name in counter_names(counter)]


def _reach(counter: CounterSettings) -> list[int]:
    """The number of bins in each of the counter's hours."""
    return [math.ceil(hours * MINUTES_PER_HOUR / counter.bin_minutes) for hours in counter.hours]


def _features(
    rows: pl.DataFrame,
    examples: pl.DataFrame,
    clicks: pl.DataFrame,
    seen: pl.DataFrame,
    counter: CounterSettings,
) -> list[pl.Series]:
    """The features for ``rows``, which have the columns KEY, BIN and FIRST, in the order of
    :func:`counter_names`."""
    by, reach = list(dict.fromkeys(counter.by)), _reach(counter)
    clicked = _before(rows, clicks, seen, by, reach)
    shown = _before(rows, examples, seen, by, reach if counter.examples else [])
    features: list[pl.Series] = []
    for index in range(len(reach)):
        features.append(clicked[index].log1p())
        if counter.examples:
            rate = (clicked[index] + counter.prior_rows * counter.prior_rate) / (
                shown[index] + counter.prior_rows
            )
            features += [shown[index].log1p(), rate.log()]
    age_h = (rows[BIN] - rows[FIRST]) * (counter.bin_minutes / MINUTES_PER_HOUR)
    # in its first bin an item's age is 0, known from the row itself
    return [*features, age_h.log1p()]


def _bins(
    keyed: pl.DataFrame, by: list[str], amount: pl.Expr, before: pl.DataFrame | None
) -> pl.DataFrame:
    """Totals per key and bin (columns ``by``, bin and total), including those of ``before``."""
    bins = keyed.group_by(*by, BIN).agg(amount.cast(pl.Float64).alias(TOTAL))
    if before is None:
        return bins
    return pl.concat([before, bins]).group_by(*by, BIN).agg(pl.col(TOTAL).sum())


def _before(
    rows: pl.DataFrame, bins: pl.DataFrame, seen: pl.DataFrame, by: list[str], reach: list[int]
) -> list[pl.Series]:
    """For each entry of ``reach``, and each row, the amount in this many bins strictly before the
    row's own; 0 where a part of the key is missing."""
    placed = bins.join(seen, on=by, how="inner").sort(KEY, BIN)  # a missing part does not match
    lowest = pl.concat([placed[BIN], rows[BIN]]).min()
    low = lowest if isinstance(lowest, int) else 0  # no rows at all
    total = np.concatenate([[0.0], placed[TOTAL].cum_sum().to_numpy()])  # whole numbers: exact
    places = _place(placed[KEY], placed[BIN] - low)
    order = rows[KEY].arg_sort().to_numpy()  # sorted, so that searches are close together
    key, own = rows[KEY].gather(order), rows[BIN].gather(order) - low

    def up_to(back: int) -> NDArray[np.float64]:
        """Running totals up to ``back`` bins before each row's own, counted from the first key's
        first bin."""
        wanted = _place(key, (own - back).clip(lower_bound=-1))
        found = np.empty(rows.height)
        found[order] = total[np.searchsorted(places, wanted, side="right")]
        return found

    newest = up_to(1) if reach else np.zeros(0)
    return [pl.Series(newest - up_to(bins_back + 1)) for bins_back in reach]


def _place(key: pl.Series, own: pl.Series) -> NDArray[np.int64]:
    """A number that sorts by key, then by bin; bin -1 comes before a key's first bin and after the
    previous key's last."""
    return key.cast(pl.Int64).to_numpy() * BINS + own.to_numpy()
