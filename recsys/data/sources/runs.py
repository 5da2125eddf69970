"""Rows of any order, sorted by time in bounded memory: sorted runs on disk, read range by range."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import polars as pl

from recsys.data.names import EVENT_TIME, OWN
from recsys.data.sources.base import LABEL_TIME, ROW
from recsys.files import flush_file

KEY_EVERY_ROWS = 200  # one key in memory for so many rows
GROUP_ROWS = 16_384  # of a run, read together: a range reads little more than its own
BAD_ROWS = 250_000
ROWS_AFTER, PART = f"{OWN}rows_after", f"{OWN}part"
Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


@dataclass(frozen=True)
class Shift:
    """Where a share of a log begins in it: its rows are ``rows`` further on than it counts them,
    and have the ``time`` of their rows there if the rows are the clock."""

    rows: int = 0
    time: pl.Expr | None = None

    def __call__(self, frame: Frame) -> Frame:
        """A frame whose rows, and times, are those of the log."""
        if self.rows == 0:
            return frame
        frame = frame.with_columns(pl.col(ROW) + self.rows)
        if self.time is None:
            return frame
        return frame.with_columns(self.time.alias(EVENT_TIME), self.time.alias(LABEL_TIME))


@dataclass(frozen=True)
class _Run:
    path: Path
    ends: pl.DataFrame  # its first row and its last one
    shift: Shift = Shift()

    @property
    def first_ms(self) -> int:
        return self.ends[EVENT_TIME][0]

    @property
    def last_ms(self) -> int:
        return self.ends[EVENT_TIME][1]


class SortedRuns:
    """An external sort by (event time, row).

    Args:
        folder: takes the runs; a run is as large as what :meth:`add` is given. ``rows`` counts
            them all, ``empty`` has their columns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._runs: list[_Run] = []
        self._keys: list[pl.DataFrame] = []
        self.empty = pl.DataFrame()

    def add(self, frame: pl.DataFrame) -> None:
        """Take rows; all frames have one schema, with event time and row."""
        self.empty = frame.clear()
        if frame.is_empty():
            return
        ordered = frame.sort(EVENT_TIME, ROW)
        path = self._path(len(self._runs))
        ordered.write_parquet(path, compression="lz4", row_group_size=GROUP_ROWS)
        flush_file(path)
        self._note(path, ordered.select(EVENT_TIME, ROW))

    @staticmethod
    def joined(shares: Sequence[tuple["SortedRuns", Shift]]) -> "SortedRuns":
        """The runs of at least one share, each where it is in the log."""
        joined = SortedRuns(shares[0][0].folder)
        joined.empty = shares[0][0].empty
        for one, shift in shares:
            joined.rows += one.rows
            joined._runs += [replace(run, ends=shift(run.ends), shift=shift) for run in one._runs]
            joined._keys += [shift(keys).select(keys.columns) for keys in one._keys]
        return joined

    def take(self, runs: int) -> Iterator[pl.DataFrame]:
        """Take the first ``runs`` of those that another has left in the folder, one by one."""
        for index in range(runs):
            path = self._path(index)
            found = pl.read_parquet(path, glob=False)
            self.empty = found.clear()
            self._note(path, found.select(EVENT_TIME, ROW))
            yield found

    @property
    def files(self) -> int:
        """How many runs there are."""
        return len(self._runs)

    def _path(self, index: int) -> Path:
        return self.folder / f"run-{index:06d}.parquet"

    def _note(self, path: Path, ordered: pl.DataFrame) -> None:
        self._runs.append(_Run(path, ordered[[0, -1]]))
        keys = ordered.gather_every(KEY_EVERY_ROWS)
        after = (pl.lit(ordered.height) - pl.int_range(pl.len()) * KEY_EVERY_ROWS).clip(
            upper_bound=KEY_EVERY_ROWS
        )
        self._keys.append(keys.with_columns(after.alias(ROWS_AFTER)))
        self.rows += ordered.height

    def ranges(self, rows: int, whole_ms: int = 1) -> Iterator[pl.DataFrame]:
        """All rows in their order, about ``rows`` at a time; an empty frame where there are none.

        Args:
            whole_ms: a range holds whole multiples of it; then no range is cut inside one, however
                many rows it has.
        """
        if not self._runs:
            yield self.empty
            return
        starts = self._starts(rows, whole_ms)
        for index, (time, row) in enumerate(starts):
            wanted = pl.lit(True) if index == 0 else _from(time, row)
            runs = self._runs
            if index > 0:
                runs = [run for run in runs if run.last_ms >= time]
            if index + 1 < len(starts):
                after = starts[index + 1]
                wanted = wanted & ~_from(*after) & (pl.col(EVENT_TIME) <= after[0])
                runs = [run for run in runs if run.first_ms <= after[0]]
            found = pl.concat(
                of_share[0].shift(pl.scan_parquet([run.path for run in of_share], glob=False))
                for of_share in _by_share(runs)
            ).filter(wanted)
            yield found.collect(engine="streaming").sort(EVENT_TIME, ROW)

    def _starts(self, rows: int, whole_ms: int) -> list[tuple[int, int]]:
        """(event time, row) at which each range starts; the first takes all before it, too."""
        keys = pl.concat(self._keys).sort(EVENT_TIME, ROW)
        part = (pl.col(ROWS_AFTER).cum_sum() - pl.col(ROWS_AFTER)) // rows
        starts = keys.with_columns(part.alias(PART)).unique(PART, keep="first", maintain_order=True)
        if whole_ms > 1:
            whole = pl.col(EVENT_TIME) // whole_ms * whole_ms
            starts = starts.with_columns(whole, pl.lit(0, pl.Int64).alias(ROW)).unique(
                EVENT_TIME, maintain_order=True
            )
        return list(starts.select(EVENT_TIME, ROW).iter_rows())


class BadRows:
    """Rows that could not become examples, kept in ``folder`` in the order in which they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._paths: list[tuple[Path, int]] = []  # and where the share of the log begins

    @staticmethod
    def joined(shares: Sequence[tuple["BadRows", int]]) -> "BadRows":
        """Those of at least one share, and the row of the log at which each begins."""
        joined = BadRows(shares[0][0].folder)
        for one, first in shares:
            joined.rows += one.rows
            joined._paths += [(path, first) for path, _ in one._paths]
        return joined

    def add(self, bad: pl.DataFrame) -> None:
        """Take rows."""
        if bad.height:
            path = self._path(len(self._paths))
            bad.write_parquet(path, compression="lz4")
            flush_file(path)
            self._paths.append((path, 0))
            self.rows += bad.height

    def take(self, files: int, rows: int) -> None:
        """Take those ``rows`` that another has left in the first ``files`` files of the folder."""
        self._paths += [(self._path(index), 0) for index in range(files)]
        self.rows += rows

    @property
    def files(self) -> int:
        """How many files there are."""
        return len(self._paths)

    def _path(self, index: int) -> Path:
        return self.folder / f"bad-{index:06d}.parquet"

    def batches(self) -> Iterator[pl.DataFrame]:
        """All rows, as many at a time however many were added at once."""
        if not self._paths:
            return
        bad = pl.concat(
            pl.scan_parquet([path for path, _ in paths], glob=False).with_columns(
                pl.col("row") + first
            )
            for first, paths in groupby(self._paths, lambda one: one[1])
        )
        for first in range(0, self.rows, BAD_ROWS):
            yield bad.slice(first, BAD_ROWS).collect()


def _from(time: int, row: int) -> pl.Expr:
    """Whether a row is at or after (time, row)."""
    event_time = pl.col(EVENT_TIME)
    return (event_time >= time) & ((event_time > time) | (pl.col(ROW) >= row))


def _by_share(runs: Sequence[_Run]) -> list[list[_Run]]:
    """The runs of each share together; they stand in the order of the shares."""
    return [list(found) for _, found in groupby(runs, lambda run: run.shift.rows)]
