"""Past-only counting features: nothing of a row's own time bin, or of a later one, enters them."""

import math

import polars as pl

from recsys.data.settings import CounterSettings

MS_PER_MINUTE = 60_000
MINUTES_PER_HOUR = 60


def add_counters(
    frame: pl.DataFrame, counters: list[CounterSettings]
) -> tuple[pl.DataFrame, list[str]]:
    """``frame`` (sorted by event_time) with the features of each counter, and their names."""
    names: list[str] = []
    for counter in counters:
        before = set(frame.columns)
        frame = _add(frame, counter)
        names += [name for name in frame.columns if name not in before]
    return frame, names


def _add(frame: pl.DataFrame, counter: CounterSettings) -> pl.DataFrame:
    prefix = "_".join(counter.by)
    bin_ms = round(counter.bin_minutes * MS_PER_MINUTE)
    keyed = frame.select(
        *counter.by,
        "label",
        bin=pl.col("event_time") // bin_ms,
        label_bin=pl.col("label_time") // bin_ms,
    )
    examples = _running(keyed, counter.by, pl.len())
    labelled = keyed.with_columns(bin=pl.col("label_bin"))
    clicks = _running(labelled, counter.by, pl.col("label").cast(pl.Float64).sum())
    rows = keyed.select(*counter.by, "bin")
    features: list[pl.Series] = []
    for hours in counter.hours:
        bins = math.ceil(hours * MINUTES_PER_HOUR / counter.bin_minutes)
        clicked = _between(rows, clicks, counter.by, bins)
        features.append(clicked.log1p().alias(f"{prefix}_clicks_{hours:g}h"))
        if counter.examples:
            shown = _between(rows, examples, counter.by, bins)
            rate = (clicked + counter.prior_rows * counter.prior_rate) / (
                shown + counter.prior_rows
            )
            features.append(shown.log1p().alias(f"{prefix}_examples_{hours:g}h"))
            features.append(rate.log().alias(f"{prefix}_log_rate_{hours:g}h"))
    seen = keyed.group_by(counter.by).agg(pl.col("bin").min().alias("first"))
    age = rows.join(seen, on=counter.by, how="left", nulls_equal=True, maintain_order="left")
    age_h = (age["bin"] - age["first"]) * (counter.bin_minutes / MINUTES_PER_HOUR)
    # in its first bin an item's age is 0, known from the row itself
    features.append(age_h.log1p().alias(f"{prefix}_age"))
    return frame.with_columns(features)


def _running(keyed: pl.DataFrame, by: list[str], amount: pl.Expr) -> pl.DataFrame:
    """by, bin and ``total``: the amount up to and including the bin; sorted by bin."""
    bins = keyed.group_by(*by, "bin").agg(amount.cast(pl.Float64).alias("total")).sort("bin", *by)
    return bins.with_columns(pl.col("total").cum_sum().over(by))


def _between(rows: pl.DataFrame, running: pl.DataFrame, by: list[str], bins: int) -> pl.Series:
    """For each row, the amount in the ``bins`` bins strictly before its own."""
    return _total_at(rows, running, by, 1) - _total_at(rows, running, by, bins + 1)


def _total_at(rows: pl.DataFrame, running: pl.DataFrame, by: list[str], back: int) -> pl.Series:
    """For each row, the running total ``back`` bins before its own; rows are sorted by bin."""
    wanted = rows.with_columns(bin=pl.col("bin") - back)
    joined = wanted.join_asof(running, on="bin", by=by, strategy="backward", check_sortedness=False)
    return joined["total"].fill_null(0.0)
