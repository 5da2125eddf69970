"""Each row's history: what its user clicked, as far as it was known before the row's event."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.data.collisions import TableUse
from recsys.data.encoding import hash_to_rows, lists
from recsys.data.names import EVENT_TIME, OWN
from recsys.data.settings import HistorySettings
from recsys.data.sources.base import EXAMPLE, LABEL, LABEL_TIME

HISTORY, KNOWN, BEFORE = f"{OWN}history", f"{OWN}known", f"{OWN}before"


@dataclass
class HistoryState:
    """Clicks of the rows before that a later history may hold: user, label time, example, row of
    the table."""

    clicks: pl.DataFrame | None = None


def add_history(
    frame: pl.DataFrame,
    settings: HistorySettings,
    null_values: list[str],
    use: TableUse,
    state: HistoryState,
) -> pl.DataFrame:
    """``frame`` with the list column ``own:history`` of hashed items, int64, oldest to newest.

    Clicks are in the order in which they became known: by label_time, then example_id. One whose
    label_time is the row's event_time is not known yet.

    Args:
        frame: with the project's own columns and the settings'; sorted by event time.
        use: of the table; has its size.
        state: what is known of the frames before, all their rows being earlier; it is brought up
            to date.
    """
    user, item = settings.user, settings.item
    clicks = frame.filter(
        (pl.col(LABEL) == 1) & pl.col(user).is_not_null() & pl.col(item).is_not_null()
    )
    hashed = hash_to_rows(clicks[item], use.table_rows, null_values, use)
    clicks = clicks.select(user, LABEL_TIME, EXAMPLE, hashed.alias(HISTORY))
    clicks = clicks if state.clicks is None else pl.concat([state.clicks, clicks])
    clicks = clicks.sort(user, LABEL_TIME, EXAMPLE)
    clicks = clicks.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(KNOWN))
    # Of all users sorted before this one
    clicks = clicks.with_columns((pl.col(KNOWN).min().over(user) - 1).alias(BEFORE))
    known = clicks.select(user, LABEL_TIME, KNOWN, BEFORE).sort(LABEL_TIME, KNOWN)
    rows = frame.select(user, EVENT_TIME).join_asof(
        known,
        left_on=EVENT_TIME,
        right_on=LABEL_TIME,
        by=user,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    stop = rows[KNOWN].fill_null(0).to_numpy()
    start = np.maximum(rows[BEFORE].fill_null(0).to_numpy(), stop - settings.length)
    lengths = stop - start
    places = np.arange(lengths.sum()) + np.repeat(start - (np.cumsum(lengths) - lengths), lengths)
    items = clicks[HISTORY].to_numpy()
    if frame.height:
        # Later rows know these all; what becomes known later comes after them
        known_by_now = pl.col(LABEL_TIME) < frame[EVENT_TIME][-1]
        newer = known_by_now.cast(pl.Int64).sum().over(user) - pl.int_range(pl.len()).over(user)
        clicks = clicks.filter(newer <= settings.length)
    state.clicks = clicks.select(user, LABEL_TIME, EXAMPLE, HISTORY)
    return frame.with_columns(lists(items[places], lengths).alias(HISTORY))
