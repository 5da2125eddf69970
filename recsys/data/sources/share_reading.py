"""Read a share of a log block by block and leave its rows on disk, sorted.

If the reader is killed, the next one resumes after the last whole block.
"""

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.collisions import DistinctValues
from recsys.data.names import OWN
from recsys.data.settings import DataSettings
from recsys.data.sources.examples import (
    count_values,
    counted_features,
    examples_of,
    used_columns,
)
from recsys.data.sources.joins import Joins
from recsys.data.sources.labels import LabelsSeen, NegativeState
from recsys.data.sources.parsing import Seen, filtered, parse_rows
from recsys.data.sources.reading import Tables, one_line
from recsys.data.sources.runs import BadRows, SortedRuns
from recsys.data.sources.shares import Share
from recsys.data.sources.table_encoder import read_columns
from recsys.data.sources.times import TimesSeen
from recsys.files import write_atomically
from recsys.progress import RowProgress
from recsys.units import MS_PER_HOUR

BLOCK_SHARE = 1 / 20  # of memory_gb, for the raw values of a block; what is made of them takes more
ENCODED_BYTES, ENTRY_BYTES = 8, 16  # of a value
STATE_FILE, PART_FILE = "state.json", "part.pickle"


@dataclass
class PassState:
    """What a share has left in its folder, brought up to date after each block.

    Attributes:
        zeros: tasks whose labels are known to hold a 0.
        file_rows: rows taken from each file.
        read: rows of the log in all blocks; ``kept``: of these, not filtered out.
        runs: sorted runs in the folder; ``bad``: files of bad rows, ``bad_rows`` in all.
        times: what is known of the columns of times, by their key of the settings.
        labels: what is known of the columns of labels, by task.
    """

    zeros: list[str] = field(default_factory=list)
    file_rows: list[int] = field(default_factory=list)
    read: int = 0
    kept: int = 0
    runs: int = 0
    bad: int = 0
    bad_rows: int = 0
    times: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, dict[str, bool]] = field(default_factory=dict)

    @property
    def negative(self) -> set[str]:
        """Tasks of which a -1 has been taken for the label 0."""
        return {task for task, flags in self.labels.items() if flags["negative"]}

    def seen(self) -> Seen:
        """What the blocks so far have shown."""
        seen = Seen()
        for name, one in self.times.items():
            setattr(seen, name, _times_seen(one))
        for task, flags in self.labels.items():
            seen.labels[task] = LabelsSeen(**flags)
        for task in self.zeros:
            seen.labels[task].zero = True
        return seen

    def note(self, seen: Seen) -> None:
        """Take what the blocks so far have shown."""
        self.times = {name: _times_state(getattr(seen, name)) for name in ("time", "label_time")}
        self.labels = {task: asdict(one) for task, one in seen.labels.items()}

    def save(self, folder: Path) -> None:
        """Write it; what it speaks of has to be on the disk by now."""
        write_atomically(folder / STATE_FILE, json.dumps(asdict(self)).encode())

    @staticmethod
    def left(folder: Path) -> "PassState | None":
        """That of a killed reader; None where it did not come to the end of a block."""
        try:
            return PassState(**json.loads((folder / STATE_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _times_state(seen: TimesSeen) -> dict[str, Any]:
    """For JSON."""
    plain = {name: value for name, value in vars(seen).items() if not isinstance(value, list)}
    lists = {"values": seen.values, "outside_ms": seen.outside_ms}
    return plain | {
        name: [value for one in series for value in one] for name, series in lists.items()
    }


def _times_seen(state: dict[str, Any]) -> TimesSeen:
    """From what :func:`_times_state` gave."""
    values = pl.Series(state["values"], dtype=pl.Float64)
    outside = pl.Series(state["outside_ms"], dtype=pl.Int64)
    return TimesSeen(**{**state, "values": [values], "outside_ms": [outside]})


@dataclass
class Found:
    """What the good rows tell: distinct values of features by name, types of columns, examples, and
    the bytes that they take in memory."""

    values: dict[str, DistinctValues]
    types: dict[str, pl.DataType] = field(default_factory=dict)
    examples: int = 0
    row_bytes: float = 0.0

    def add(self, good: pl.DataFrame, joins: Joins, columns: int) -> None:
        """Count the rows of a run; each has as many ``columns``."""
        settings, examples = joins.settings, good
        if settings.explode is not None:
            examples = examples_of(good, settings, NegativeState()).frame
            self.types[settings.explode.item] = examples.schema[settings.explode.item]
        examples = joins.of_examples(examples)
        for one in joins.examples:
            self.types |= {name: examples.schema[name] for name in one.settings.names}
        self.examples += examples.height
        self.row_bytes += _bytes(examples) + ENCODED_BYTES * examples.height * columns
        if settings.sample_negatives is None:
            count_values(examples, settings, self.values)

    def plus(self, other: "Found") -> None:
        """Take what the rows of another share tell."""
        for name, values in other.values.items():
            self.values[name].take(values)
        self.types |= other.types
        self.examples += other.examples
        self.row_bytes += other.row_bytes


@dataclass
class Part:
    """A share as read: ``read`` rows, of which ``kept`` were not filtered out."""

    read: int
    kept: int
    runs: SortedRuns
    bad: BadRows
    found: Found
    seen: Seen


@dataclass(frozen=True)
class ShareReader:
    """Reads shares of a log; a pickled one reads the side tables of ``joins`` again."""

    joins: Joins
    data: DataSettings

    def read(self, share: Share) -> int:
        """Leave the rows of ``share`` in its folder; how many rows of the log they are.

        Resumes after the last whole block that a killed reader has left there.

        Raises:
            InputError: a file cannot be read, or a column is not what the settings say.
        """
        folder, state = share.folder, PassState.left(share.folder)
        if state is None or share.zeros & state.negative:
            state = PassState()
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / PART_FILE).exists():
            return state.read
        state.zeros = sorted({*state.zeros, *share.zeros})
        with one_line(share.tables.files[0]):
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                part = self._read(share, state)
                again = [
                    task for task, one in part.seen.labels.items() if one.zero and one.negative
                ]
                if not again:
                    break
                state = PassState([*state.zeros, *again])
                shutil.rmtree(folder)
        write_atomically(folder / PART_FILE, pickle.dumps(part))
        return part.read

    def _read(self, share: Share, state: PassState) -> Part:
        """The rows after ``state``; up to a label's first 0 where rows of -1 came before it."""
        joins, settings, tables = self.joins, self.joins.settings, share.tables
        block_bytes = self.data.memory_gb * 2**30 * BLOCK_SHARE / self.data.parallel_tasks
        window_ms = round(self.data.window_hours * MS_PER_HOUR)
        seen, runs, bad = state.seen(), SortedRuns(share.folder), BadRows(share.folder)
        found = Found(counted_features(settings))
        file_rows = np.zeros(len(tables.files), dtype=np.int64)
        file_rows[: len(state.file_rows)] = state.file_rows
        keys = (key for one in joins.examples for key in one.settings.keys)
        used = {*used_columns(settings), *keys}
        bad.take(state.bad, state.bad_rows)
        rows = tables.rows() if share.alone else 0
        with RowProgress("read", rows, enabled=share.alone) as progress:
            progress.advance(state.read)
            for good in runs.take(state.runs):
                found.add(good, joins, len(used))
            for block in _blocks(tables, block_bytes, file_rows, state.read):
                raw = filtered(joins.of_rows(block), settings, state.read)
                found.types |= raw.schema
                used.update(read_columns(settings, raw.schema))
                starts = np.cumsum(file_rows) - file_rows
                parsed = parse_rows(raw, settings, share.file_names, starts, seen, window_ms)
                if any(one.zero and one.negative for one in seen.labels.values()):
                    break
                bad.add(parsed.bad)
                good = parsed.good.select(
                    name for name in parsed.good.columns if name.startswith(OWN) or name in used
                )
                runs.add(good)
                found.add(good, joins, len(used))
                state.file_rows = file_rows.tolist()
                state.read += block.height
                state.kept += raw.height
                state.runs, state.bad, state.bad_rows = runs.files, bad.files, bad.rows
                state.note(seen)
                state.save(share.folder)
                progress.advance(block.height)
        return Part(state.read, state.kept, runs, bad, found, seen)


def _blocks(
    tables: Tables, block_bytes: float, file_rows: NDArray[np.int64], first: int
) -> Iterator[pl.DataFrame]:
    """The rows of all files from the row ``first`` on, about ``block_bytes`` at a time;
    ``file_rows`` counts those of each file that have been taken."""
    block: list[pl.DataFrame] = []
    size = 0.0
    # Of the last file that was begun it is not known whether it was read to its end
    ends = np.cumsum(file_rows)
    begun = int(np.flatnonzero(file_rows)[-1]) if first else 0
    first_file = min(int(np.searchsorted(ends, first, side="right")), begun)
    first_row = first - int(ends[first_file] - file_rows[first_file])
    file_rows[first_file] = first_row
    file_rows[first_file + 1 :] = 0
    for index, batch in tables.batches(first_file=first_file, first_row=first_row):
        file_rows[index] += batch.height
        row_bytes = max(_bytes(batch) / max(batch.height, 1), 1.0)
        for piece in batch.iter_slices(max(1, int(block_bytes / row_bytes))):
            block.append(piece)
            size += row_bytes * piece.height
            if size >= block_bytes:
                yield pl.concat(block)
                block, size = [], 0.0
    yield pl.concat(block or [pl.DataFrame(schema=tables.types)])


def _bytes(frame: pl.DataFrame) -> int:
    """Of the values in memory; polars does not count a text's or a list's own entry."""
    return int(frame.estimated_size()) + ENTRY_BYTES * frame.height * frame.width
