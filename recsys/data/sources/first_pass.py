"""The first pass of a table: its shares are read, and put together as one log."""

import pickle
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from recsys.data.collisions import DistinctValues
from recsys.data.settings import DataSettings, TableSettings
from recsys.data.sources.base import ROW
from recsys.data.sources.examples import counted_features
from recsys.data.sources.files import resolve_files
from recsys.data.sources.joins import Joins
from recsys.data.sources.parsing import Seen
from recsys.data.sources.reading import Tables
from recsys.data.sources.runs import BadRows, Shift, SortedRuns
from recsys.data.sources.share_reading import PART_FILE, Found, Part, PassState, ShareReader
from recsys.data.sources.shares import ReadShares, shares_of
from recsys.data.sources.times import row_times
from recsys.files import fingerprint
from recsys.progress import RowProgress
from recsys.provenance import code_of
from recsys.units import MS_PER_HOUR

RANGE_SHARE = 1 / 12  # of memory_gb, for the values of a range; what is made of them takes more


@dataclass
class Log:
    """What the first pass found: good rows, bad rows and, where ``table_rows`` is auto, values.

    ``range_rows`` go into a range of the second pass; ``rows_left`` are good rows that it has not
    come to. ``types`` are those of the raw columns, the derived ones and the item of impressions;
    ``examples`` are as many as the log may have.
    """

    files: list[Path]
    runs: SortedRuns
    bad: BadRows
    read: int
    filtered: int
    values: dict[str, DistinctValues]
    range_rows: int
    rows_left: int
    types: dict[str, pl.DataType]
    examples: int
    joins: Joins


def first_pass(
    tables: Tables, joins: Joins, data: DataSettings, folder: Path, read_shares: ReadShares
) -> Log:
    """Read a log in shares for as many tasks as ``data`` asks for, and put together what they leave
    in ``folder``.

    Args:
        read_shares: see ``ReadShares``; with more than one task it may read several at once, in
            other processes, too.

    Raises:
        InputError: a file cannot be read, or a column is not what the settings say.
    """
    mark = _fingerprint(tables, joins.settings, data, folder)
    shares = shares_of(tables, data.parallel_tasks, folder, mark)
    for path in set(folder.glob("share-*")) - {share.folder for share in shares}:
        shutil.rmtree(path)  # of another log, or of other settings
    left = [state.read for share in shares if (state := PassState.left(share.folder)) is not None]
    if sum(left):
        RowProgress("read", 0).note(f"resumes after {sum(left):,} rows that a killed run has read")
    read, todo, alone = ShareReader(joins, data).read, shares, len(shares) == 1
    while True:
        rows = 0 if alone else sum(share.tables.rows() for share in todo)
        with RowProgress("read", rows, enabled=not alone) as progress:
            read_shares(read, todo, progress.advance)
        whole = _Whole(joins, data, Found(counted_features(joins.settings)))
        for share in shares:  # one by one: its counts may be large
            whole.add(pickle.loads((share.folder / PART_FILE).read_bytes()))
        # A -1 is a label only where the entire log holds no 0
        zeros = frozenset(task for task, one in whole.seen.labels.items() if one.zero)
        todo = [
            replace(share, zeros=zeros)
            for share, negative in zip(shares, whole.negative, strict=True)
            if negative & zeros
        ]
        if not todo:
            return whole.log(tables.files)


@dataclass
class _Whole:
    """Shares put together, each behind the one before it; ``negative`` are the tasks whose labels
    of -1 each has taken for 0."""

    joins: Joins
    data: DataSettings
    found: Found
    seen: Seen = field(default_factory=Seen)
    read: int = 0
    kept: int = 0
    runs: list[tuple[SortedRuns, Shift]] = field(default_factory=list)
    bad: list[tuple[BadRows, int]] = field(default_factory=list)
    negative: list[set[str]] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Put a share behind those that are here."""
        clock, time = self.joins.settings.row_clock, None
        if clock is not None:
            time = row_times(pl.col(ROW), clock, round(self.data.window_hours * MS_PER_HOUR))
        self.runs.append((part.runs, Shift(self.read, time)))
        self.bad.append((part.bad, self.read))
        self.read += part.read
        self.kept += part.kept
        self.found.plus(part.found)
        self.seen.plus(part.seen)
        self.negative.append({task for task, one in part.seen.labels.items() if one.negative})

    def log(self, files: list[Path]) -> Log:
        """All of them.

        Raises:
            InputError: a column of times as a whole is not what the settings say.
        """
        settings = self.joins.settings
        if settings.time is not None:
            self.seen.time.check(settings.time)
        if settings.label_time is not None:
            self.seen.label_time.check(settings.label_time)
        runs, count = SortedRuns.joined(self.runs), self.found.examples
        per_row = self.found.row_bytes / max(runs.rows, 1)
        if settings.sample_negatives is not None:
            per_row *= 1 + settings.sample_negatives.per_click
            count *= 1 + settings.sample_negatives.per_click
        memory = self.data.memory_gb * 2**30
        return Log(
            files,
            runs,
            BadRows.joined(self.bad),
            self.read,
            self.read - self.kept,
            self.found.values,
            max(1, int(memory * RANGE_SHARE / max(per_row, 1.0))),
            runs.rows,
            self.found.types,
            count,
            self.joins,
        )


def _fingerprint(tables: Tables, settings: TableSettings, data: DataSettings, folder: Path) -> str:
    """Of all that decides what the first pass leaves."""
    joined = [
        file for one in settings.joins for file in resolve_files(one.files, data.root, folder)
    ]
    states = [(str(file), file.stat()) for file in [*tables.files, *joined]]
    files = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    others = data.model_dump(exclude={"runner", "parallel_tasks"})
    return fingerprint(files, settings.model_dump(), others, code_of(__name__))
