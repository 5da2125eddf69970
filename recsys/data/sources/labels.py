"""Labels for logs that hold none: impression lists, and clicks alone."""

import numpy as np
import polars as pl

from recsys.data.settings import ExplodeSettings, NegativeSettings
from recsys.units import MS_PER_HOUR

DRAW_ROUNDS = 20


def explode_impressions(frame: pl.DataFrame, settings: ExplodeSettings) -> pl.DataFrame:
    """One example per element of the shown list, in its order; label 1 if it was clicked.

    Repeated elements of either list count once. Adds ``shown_count``.
    """
    item = settings.item
    clicked = frame.select(
        "row", pl.col(settings.clicked).list.unique(maintain_order=True).alias(item)
    ).explode(item)
    clicked = clicked.drop_nulls().with_columns(pl.lit(1.0, dtype=pl.Float32).alias("label"))
    shown = pl.col(settings.shown).list.unique(maintain_order=True)
    kept = [name for name in frame.columns if name not in (item, settings.shown, settings.clicked)]
    exploded = frame.select(
        *kept, shown.list.len().alias("shown_count"), shown.alias(item)
    ).explode(item)
    exploded = exploded.filter(pl.col(item).is_not_null())
    joined = exploded.join(clicked, on=["row", item], how="left", maintain_order="left")
    return joined.with_columns(pl.col("label").fill_null(0.0))


def sample_negatives(frame: pl.DataFrame, settings: NegativeSettings) -> pl.DataFrame:
    """Each click (label 1) followed by its sampled negatives (label 0), seeded.

    Clicks with no earlier popularity to draw from (the first hours of the log) are left out, and a
    negative that is still an item of the session after 20 draws is dropped.
    """
    item, session = settings.item, settings.session
    clicks = frame.sort("event_time", "row").with_columns(
        (pl.col("event_time") // MS_PER_HOUR).alias("hour")
    )
    first = clicks.group_by(session, item).agg(pl.col("event_time").min().alias("first_click"))
    popularity = _popularity(clicks, settings)
    clicks = clicks.filter(pl.col("hour").is_in(list(popularity))).with_columns(
        pl.lit(1.0).alias("label")
    )
    open_slots = pl.concat(
        [clicks.select("row", session, "event_time", "hour")] * settings.per_click
    )
    found = []
    for draw in range(DRAW_ROUNDS):
        if open_slots.height == 0:
            break
        drawn = _draw(open_slots, popularity, item, clicks.schema[item], (settings.seed, draw))
        drawn = drawn.join(first, on=[session, item], how="left", maintain_order="left")
        banned = (pl.col("first_click") <= pl.col("event_time")).fill_null(False)
        found.append(drawn.filter(~banned).select("row", item))
        open_slots = drawn.filter(banned).select(open_slots.columns)
    negatives = pl.concat(found).join(
        clicks.drop(item), on="row", how="left", maintain_order="left"
    )
    negatives = negatives.with_columns(pl.lit(0.0).alias("label")).select(clicks.columns)
    both = pl.concat([clicks, negatives]).with_columns(pl.col("label").cast(pl.Float32))
    return both.sort("event_time", "row", maintain_order=True).drop("hour")


Popularity = dict[int, tuple[np.ndarray, np.ndarray]]


def _popularity(clicks: pl.DataFrame, settings: NegativeSettings) -> Popularity:
    """By hour: the items clicked in the hours before, and their cumulative clicks."""
    counts = clicks.group_by("hour", settings.item).len().sort("hour", settings.item)
    by_hour: Popularity = {}
    shifted = [
        counts.with_columns(pl.col("hour") + back)
        for back in range(1, settings.popularity_hours + 1)
    ]
    past = (
        pl.concat(shifted)
        .group_by("hour", settings.item)
        .agg(pl.col("len").sum())
        .sort("hour", settings.item)
    )
    for (hour,), rows in past.group_by("hour", maintain_order=True):
        by_hour[int(str(hour))] = (rows[settings.item].to_numpy(), rows["len"].cum_sum().to_numpy())
    return by_hour


def _draw(
    slots: pl.DataFrame,
    popularity: Popularity,
    item: str,
    dtype: pl.DataType,
    seed: tuple[int, int],
) -> pl.DataFrame:
    """``slots`` sorted by hour, with one item drawn for each; an hour's draws do not depend on
    other hours."""
    slots = slots.sort("hour", maintain_order=True)
    drawn = []
    for (hour,), rows in slots.group_by("hour", maintain_order=True):
        items, cumulative = popularity[int(str(hour))]
        random = np.random.default_rng((*seed, int(str(hour))))
        drawn.append(
            items[
                np.searchsorted(
                    cumulative, random.random(rows.height) * cumulative[-1], side="right"
                )
            ]
        )
    return slots.with_columns(pl.Series(item, np.concatenate(drawn), dtype=dtype))
