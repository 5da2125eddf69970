"""Past-only counting features: nothing of a row's own time bin, or of a later one, enters them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from recsys.data.names import EVENT_TIME, OWN
from recsys.data.settings import CounterSettings
from recsys.data.sources.base import LABEL, LABEL_TIME

MS_PER_MINUTE = 60_000
MINUTES_PER_HOUR = 60
BIN, LABEL_BIN = f"{OWN}bin", f"{OWN}label_bin"
TOTAL, FIRST = f"{OWN}total", f"{OWN}first"


def counter_names(counter: CounterSettings) -> list[str]:
    """The names of a counter's features, in their order."""
    name = "_".join(counter.by) if counter.name is None else counter.name
    names: list[str] = []
    for hours in counter.hours:
        names.append(f"{name}_clicks_{hours:g}h")
        if counter.examples:
            names += [f"{name}_examples_{hours:g}h", f"{name}_log_rate_{hours:g}h"]
    return [*names, f"{name}_age"]


@dataclass
class CounterState:
    """What a counter knows of the rows before, by its key: examples and clicks per bin, as far back
    as its hours reach, and the bin in which each key was first seen."""

    examples: pl.DataFrame | None = None
    clicks: pl.DataFrame | None = None
    first: pl.DataFrame | None = None


def add_counters(
    frame: pl.DataFrame, counters: Sequence[CounterSettings], states: Sequence[CounterState]
) -> pl.DataFrame:
    """``frame`` (sorted by event time) with the features of each counter.

    ``states`` are what is known of the frames before, all their rows being earlier; they are
    brought up to date.
    """
    for counter, state in zip(counters, states, strict=True):
        frame = _add(frame, counter, state)
    return frame


def _add(frame: pl.DataFrame, counter: CounterSettings, state: CounterState) -> pl.DataFrame:
    bin_ms = round(counter.bin_minutes * MS_PER_MINUTE)
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
    seen = seen.group_by(by).agg(pl.col(FIRST).min())
    rows = keyed.select(*by, BIN)
    running, clicked_so_far = _running(examples, by), _running(clicks, by)
    bins = [math.ceil(hours * MINUTES_PER_HOUR / counter.bin_minutes) for hours in counter.hours]
    features: list[pl.Series] = []
    for count in bins:
        clicked = _between(rows, clicked_so_far, by, count)
        features.append(clicked.log1p())
        if counter.examples:
            shown = _between(rows, running, by, count)
            rate = (clicked + counter.prior_rows * counter.prior_rate) / (
                shown + counter.prior_rows
            )
            features += [shown.log1p(), rate.log()]
    age = rows.join(seen, on=by, how="left", nulls_equal=True, maintain_order="left")
    age_h = (age[BIN] - age[FIRST]) * (counter.bin_minutes / MINUTES_PER_HOUR)
    # in its first bin an item's age is 0, known from the row itself
    features.append(age_h.log1p())
    if frame.height:
        # No later row looks further back: totals up to there would cancel
        reached = pl.col(BIN) >= keyed[BIN][-1] - max(bins, default=0)
        examples, clicks = examples.filter(reached), clicks.filter(reached)
    state.examples, state.clicks, state.first = examples, clicks, seen
    return frame.with_columns(
        feature.alias(name) for name, feature in zip(counter_names(counter), features, strict=True)
    )


def _bins(
    keyed: pl.DataFrame, by: list[str], amount: pl.Expr, before: pl.DataFrame | None
) -> pl.DataFrame:
    """by, bin and total: the amount in the bin, with that of ``before``."""
    bins = keyed.group_by(*by, BIN).agg(amount.cast(pl.Float64).alias(TOTAL))
    if before is None:
        return bins
    return pl.concat([before, bins]).group_by(*by, BIN).agg(pl.col(TOTAL).sum())


def _running(bins: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """``bins`` with the totals up to and including each; sorted by bin."""
    return bins.sort(BIN, *by).with_columns(pl.col(TOTAL).cum_sum().over(by))


def _between(rows: pl.DataFrame, running: pl.DataFrame, by: list[str], bins: int) -> pl.Series:
    """For each row, the amount in the ``bins`` bins strictly before its own."""
    return _total_at(rows, running, by, 1) - _total_at(rows, running, by, bins + 1)


def _total_at(rows: pl.DataFrame, running: pl.DataFrame, by: list[str], back: int) -> pl.Series:
    """For each row, the running total ``back`` bins before its own; rows are sorted by bin."""
    wanted = rows.with_columns(pl.col(BIN) - back)
    joined = wanted.join_asof(running, on=BIN, by=by, strategy="backward", check_sortedness=False)
    return joined[TOTAL].fill_null(0.0)
