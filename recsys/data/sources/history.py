"""Each row's history: the user's clicks that were known before the row's event."""

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
    """Earlier clicks that a later history may contain: user, label time, example, table row."""

    clicks: pl.DataFrame | None = None


def add_history(
    frame: pl.DataFrame,
    settings: HistorySettings,
    null_values: list[str],
    use: TableUse,
    state: HistoryState,
) -> pl.DataFrame:
    """``frame`` with the list column ``own:history`` of hashed items, int64, oldest to newest.

    Clicks are in the order in which they became known: by label_time, then example_id. A click
    whose label_time equals the row's event_time is not known yet.

    Args:
        frame: rows sorted by event time, with the project's own columns and those in ``settings``.
        use: counter of the history's table; gives its size.
        state: what is known from earlier frames, whose rows must all be earlier; it is updated.
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
    # Clicks of all users sorted before this one
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
        # Later rows know all of these; clicks that become known later follow them
        known_by_now = pl.col(LABEL_TIME) < frame[EVENT_TIME][-1]
        newer = known_by_now.cast(pl.Int64).sum().over(user) - pl.int_range(pl.len()).over(user)
        clicks = clicks.filter(newer <= settings.length)
    state.clicks = clicks.select(user, LABEL_TIME, EXAMPLE, HISTORY)
    return frame.with_columns(lists(items[places], lengths).alias(HISTORY))
