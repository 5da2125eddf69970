"""A log's table of candidates: read as the log is, encoded as of their time, counted nowhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import polars as pl

from recsys.config import InputError
from recsys.data.collisions import TableUse
from recsys.data.names import EVENT_TIME
from recsys.data.schema import task_columns
from recsys.data.settings import TableSettings
from recsys.data.sources.base import EXAMPLE, LABEL, LABEL_TIME
from recsys.data.sources.counters import CounterState, counters_of_candidates
from recsys.data.sources.first_pass import Log
from recsys.data.sources.history import HISTORY, HistoryState, add_history
from recsys.data.sources.reading import one_line
from recsys.data.sources.table_encoder import TableEncoding, table_tasks

FIRST_ID = 1 << 62  # far above every example_id of a log
FOLDER = "candidates"  # of temporary files


def without_labels(settings: TableSettings) -> TableSettings:
    """The settings by which the table of candidates is read."""
    assert settings.candidates is not None
    nothing = {"label": None, "labels": {}, "label_time": None, "attribution_window_s": None}
    files = {"files": settings.candidates.files, "candidates": None}
    return settings.model_copy(update={**nothing, **files})


@dataclass
class Candidates:
    """Candidates in event time, taken piece by piece as the log goes on.

    Args:
        log: the table of candidates after its first pass, made with :func:`without_labels`.
        settings: those of the log, ``encoding`` its encoding.
        history: what the log's earlier rows mean for its history feature; shared with the log.
        counters: the same for its counters.
    """

    log: Log
    settings: TableSettings
    encoding: TableEncoding
    history: HistoryState
    counters: list[CounterState]

    def __post_init__(self) -> None:
        self._ranges = self.log.runs.ranges(self.log.range_rows)
        self._waiting: pl.DataFrame | None = None
        self._taken = 0

    def check(self, types: Mapping[str, pl.DataType], limit: float) -> None:
        """Check the columns' ``types`` against the log's, and that few rows are bad.

        Raises:
            InputError: a type differs, or more than a share ``limit`` of the rows is bad.
        """
        file = self.log.files[0]
        for name, dtype in self.log.types.items():
            known = types.get(name, dtype)
            if pl.Null not in (known, dtype) and known != dtype:
                raise InputError(
                    f"{file}: column {name!r} holds {dtype}, the log's holds {known}; write both "
                    f"in one type"
                )
        if self.log.read == 0:
            raise InputError(f"{file}: has no candidates; fill it or leave candidates out")
        if self.log.bad.rows > limit * self.log.read:
            raise InputError(f"{file}: {self._bad()}, over quarantine_limit {limit:g}")

    def notes(self) -> list[str]:
        """A line about the rows that cannot be used, if there are any."""
        return [self._bad()] if self.log.bad.rows else []

    def _bad(self) -> str:
        reasons = pl.concat(one["reason"].value_counts() for one in self.log.bad.batches())
        counted = reasons.group_by("reason").agg(pl.col("count").sum()).sort("reason")
        said = ", ".join(f"{count:,} {reason}" for reason, count in counted.iter_rows())
        return f"{self.log.bad.rows:,} of {self.log.read:,} candidates cannot be used: {said}"

    def up_to(self, frame: pl.DataFrame, is_end: bool = False) -> pl.DataFrame:
        """The candidates not later than the last row of ``frame``, with counters and history;
        call it before ``frame`` itself is counted.

        Args:
            frame: the log's next examples.
            is_end: there are no more; all other candidates are taken, and ``frame`` is empty.
        """
        pieces = list(self._pieces(None if is_end else frame[EVENT_TIME][-1]))
        found = pl.concat(pieces) if pieces else self.log.runs.empty
        ids = FIRST_ID + self._taken + pl.int_range(pl.len(), dtype=pl.Int64)
        self._taken += found.height
        labels = task_columns(LABEL, table_tasks(self.settings))
        nothing = (pl.lit(None, dtype=pl.Float32).alias(name) for name in labels)
        found = found.with_columns(ids.alias(EXAMPLE), *nothing)
        # Without a label there is nothing to wait for
        found = found.with_columns(pl.col(EVENT_TIME).alias(LABEL_TIME))
        with one_line(self.log.files[0]):
            found = counters_of_candidates(found, frame, self.settings.counters, self.counters)
            return self._with_history(found, frame)

    def _pieces(self, time: int | None) -> Iterator[pl.DataFrame]:
        while True:
            piece = next(self._ranges, None) if self._waiting is None else self._waiting
            if piece is None:
                return
            later = piece.filter(pl.col(EVENT_TIME) > time) if time is not None else piece.clear()
            self._waiting = later if later.height else None
            yield piece[: piece.height - later.height]
            if later.height:
                return

    def _with_history(self, found: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
        history = self.settings.history
        if history is None:
            return found
        columns = [EVENT_TIME, LABEL_TIME, LABEL, EXAMPLE, history.user, history.item]
        columns = list(dict.fromkeys(columns))
        both = pl.concat([frame.select(columns), found.select(columns)])
        known = self.encoding.history_use
        listed = add_history(
            both.sort(EVENT_TIME, maintain_order=True),
            history,
            self.settings.null_values,
            TableUse(history.name, known.table_rows),
            replace(self.history),
        )
        own = listed.filter(pl.col(EXAMPLE) >= FIRST_ID)  # in their own order: of event time
        return found.hstack([own[HISTORY]])
