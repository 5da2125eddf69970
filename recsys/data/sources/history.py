"""Each row's history: what its user clicked, as far as it was known before the row's event."""

import numpy as np
import polars as pl

from recsys.data.encoding import hash_to_rows, lists
from recsys.data.settings import HistorySettings


def add_history(frame: pl.DataFrame, settings: HistorySettings) -> pl.DataFrame:
    """``frame`` with the list column ``settings.name`` of hashed items, int64, oldest to newest.

    Clicks are in the order in which they became known: by label_time, then example_id. One whose
    label_time is the row's event_time is not known yet.

    Args:
        frame: with event_time, label_time, example_id, label and the settings' columns; sorted by
            event_time.
    """
    user = settings.user
    clicks = frame.filter(
        (pl.col("label") == 1) & pl.col(user).is_not_null() & pl.col(settings.item).is_not_null()
    )
    clicks = clicks.select(user, settings.item, "label_time", "example_id").sort(
        user, "label_time", "example_id"
    )
    clicks = clicks.with_columns(known=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    # Of all users sorted before this one
    clicks = clicks.with_columns(before=pl.col("known").min().over(user) - 1)
    known = clicks.select(user, "label_time", "known", "before").sort("label_time", "known")
    rows = frame.select(user, "event_time").join_asof(
        known,
        left_on="event_time",
        right_on="label_time",
        by=user,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    stop = rows["known"].fill_null(0).to_numpy()
    start = np.maximum(rows["before"].fill_null(0).to_numpy(), stop - settings.length)
    lengths = stop - start
    places = np.arange(lengths.sum()) + np.repeat(start - (np.cumsum(lengths) - lengths), lengths)
    items = hash_to_rows(clicks[settings.item], settings.table_rows).to_numpy()
    return frame.with_columns(lists(items[places], lengths).alias(settings.name))
