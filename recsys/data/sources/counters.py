"""Past-only counting features: nothing of a row's own time bin, or of a later one, enters them."""

import math

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


def add_counters(frame: pl.DataFrame, counters: list[CounterSettings]) -> pl.DataFrame:
    """``frame`` (sorted by event time) with the features of each counter."""
    for counter in counters:
        frame = _add(frame, counter)
    return frame


def _add(frame: pl.DataFrame, counter: CounterSettings) -> pl.DataFrame:
    bin_ms = round(counter.bin_minutes * MS_PER_MINUTE)
    keyed = frame.select(
        *dict.fromkeys(counter.by),
        LABEL,
        (pl.col(EVENT_TIME) // bin_ms).alias(BIN),
        (pl.col(LABEL_TIME) // bin_ms).alias(LABEL_BIN),
    )
    examples = _running(keyed, counter.by, pl.len())
    labelled = keyed.with_columns(pl.col(LABEL_BIN).alias(BIN))
    clicks = _running(labelled, counter.by, pl.col(LABEL).cast(pl.Float64).sum())
    rows = keyed.select(*counter.by, BIN)
    features: list[pl.Series] = []
    for hours in counter.hours:
        bins = math.ceil(hours * MINUTES_PER_HOUR / counter.bin_minutes)
        clicked = _between(rows, clicks, counter.by, bins)
        features.append(clicked.log1p())
        if counter.examples:
            shown = _between(rows, examples, counter.by, bins)
            rate = (clicked + counter.prior_rows * counter.prior_rate) / (
                shown + counter.prior_rows
            )
            features += [shown.log1p(), rate.log()]
    seen = keyed.group_by(counter.by).agg(pl.col(BIN).min().alias(FIRST))
    age = rows.join(seen, on=counter.by, how="left", nulls_equal=True, maintain_order="left")
    age_h = (age[BIN] - age[FIRST]) * (counter.bin_minutes / MINUTES_PER_HOUR)
    # in its first bin an item's age is 0, known from the row itself
    features.append(age_h.log1p())
    return frame.with_columns(
        feature.alias(name) for name, feature in zip(counter_names(counter), features, strict=True)
    )


def _running(keyed: pl.DataFrame, by: list[str], amount: pl.Expr) -> pl.DataFrame:
    """by, bin and total: the amount up to and including the bin; sorted by bin."""
    bins = keyed.group_by(*by, BIN).agg(amount.cast(pl.Float64).alias(TOTAL)).sort(BIN, *by)
    return bins.with_columns(pl.col(TOTAL).cum_sum().over(by))


def _between(rows: pl.DataFrame, running: pl.DataFrame, by: list[str], bins: int) -> pl.Series:
    """For each row, the amount in the ``bins`` bins strictly before its own."""
    return _total_at(rows, running, by, 1) - _total_at(rows, running, by, bins + 1)


def _total_at(rows: pl.DataFrame, running: pl.DataFrame, by: list[str], back: int) -> pl.Series:
    """For each row, the running total ``back`` bins before its own; rows are sorted by bin."""
    wanted = rows.with_columns(pl.col(BIN) - back)
    joined = wanted.join_asof(running, on=BIN, by=by, strategy="backward", check_sortedness=False)
    return joined[TOTAL].fill_null(0.0)
