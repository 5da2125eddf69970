"""The planted click history of the generated stream: each user's clicks as they become known, and
their effect."""

import heapq
import math
from collections import defaultdict, deque

import numpy as np
import polars as pl

from recsys.data.encoding import lists
from recsys.data.settings import ClickHistorySettings

HISTORY = "history"


class ClickHistory:
    """Follows the stream row by row; holds ``length`` ads per user and the clicks whose label is
    not known yet.

    Args:
        settings: length of the history and strength of its effect.
        tastes: [ads, dimension] float64 unit vectors; the similarity of two ads is their product.
    """

    def __init__(self, settings: ClickHistorySettings, tastes: np.ndarray) -> None:
        self._settings, self._tastes = settings, tastes
        self._known: defaultdict[int, deque[int]] = defaultdict(
            lambda: deque(maxlen=settings.length)
        )
        # A heap: label_time, example_id, user, ad
        self._pending: list[tuple[int, int, int, int]] = []

    def advance(self, rows: pl.DataFrame, logit: np.ndarray, chance: np.ndarray) -> pl.DataFrame:
        """``rows`` with history, probability and label. Rows must be in event time, and later than
        those of the previous call.

        Args:
            rows: N rows of example_id, event_time, label_time, user_id and ad_id, int64.
            logit: [N] without the history's effect.
            chance: [N] uniform in [0, 1): a row is clicked if its probability is larger.
        """
        past: list[int] = []
        lengths = np.zeros(rows.height, dtype=np.int64)
        probability = np.zeros(rows.height)
        columns = rows.select("example_id", "event_time", "label_time", "user_id", "ad_id")
        for row, (example, event_time, label_time, user, ad) in enumerate(columns.iter_rows()):
            while self._pending and self._pending[0][0] < event_time:
                _, _, clicker, clicked = heapq.heappop(self._pending)
                self._known[clicker].append(clicked)
            known = list(self._known[user]) if user in self._known else []
            past += known
            lengths[row] = len(known)
            probability[row] = 1.0 / (1.0 + math.exp(-logit[row] - self._effect(known, ad)))
            if chance[row] < probability[row]:
                heapq.heappush(self._pending, (label_time, example, user, ad))
        return rows.with_columns(
            lists(np.array(past, dtype=np.int64), lengths).alias(HISTORY),
            pl.Series("probability", probability),
            pl.Series("label", (chance < probability).astype(np.float32)),
        )

    def _effect(self, known: list[int], ad: int) -> float:
        if not known:
            return 0.0
        return self._settings.strength * float((self._tastes[known] @ self._tastes[ad]).max())
