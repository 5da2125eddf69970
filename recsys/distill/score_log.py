"""The score log: append-only, one record per example, written atomically and never changed.

Its folder contains ``log.json`` (facts about the whole log) and, per window, a folder with segments
and ``window.json``, which marks the window as done and holds the segments' hashes, against which
reads are checked. A hand-made log may instead have one ``<window>.parquet`` per window with the
columns of :data:`SCORE_SCHEMA`; its staleness column is ignored and computed anew. A record has one
logit per task: ``logit`` for the data's main task, ``logit_<task>`` for others.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.schema import Window
from recsys.distill.snapshots import LookAheadError, Snapshot
from recsys.files import (
    check_file,
    damaged,
    in_one_line,
    partial_path,
    publish_file,
    read_json,
    write_atomically,
)
from recsys.units import MS_PER_HOUR

F = TypeVar("F")

LOG_FILE = "log.json"
WINDOW_FILE = "window.json"
SEGMENT_PREFIX = "segment-"
LOGIT = "logit"
OWN = "own"  # in log.json's ``external``: the snapshots whose logits contribute to the scores
PLACE = "place"  # column with a record's position among the wanted examples
REMEDY = "towerflow augment"
OLDEST_MS = 10 * 365 * 24 * MS_PER_HOUR  # an older mark must be a time in seconds
# From this many on, logits of a hand-made file that all lie in [0, 1] must be probabilities
FEWEST_PROBABILITIES = 100
ROW_GROUP = 131_072  # rows; a reader skips groups without wanted ids
CONSTANT = ["snapshot", "high_water_mark"]  # columns that rarely change between records
# Columns that grow slowly
DELTAS = dict.fromkeys(("example_id", "staleness_ms"), "DELTA_BINARY_PACKED")
SCORE_SCHEMA = {
    "example_id": pl.Int64,
    LOGIT: pl.Float32,
    "snapshot": pl.String,
    "high_water_mark": pl.Int64,
    "staleness_ms": pl.Int64,
}


class ScoreConflictError(InputError):
    """Two records of an example by the same snapshot have different logits."""


@dataclass(frozen=True)
class LogFacts:
    """The contents of log.json: ``wait_ms`` as in
    :class:`recsys.distill.augment_settings.AugmentSettings` (None: wait for every window), and the
    high-water mark and weights' hash of each snapshot that scored (None if the log does not say).
    ``external`` describes the origin of other scores; None if only snapshots scored."""

    wait_ms: int | None = None
    snapshots: dict[str, dict[str, Any]] | None = None
    external: dict[str, Any] | None = None

    @property
    def own_snapshots(self) -> dict[str, dict[str, Any]]:
        """The snapshots that contribute to the scores, in the form of ``snapshots``."""
        found = self.snapshots if self.external is None else self.external.get(OWN)
        return found or {}


@dataclass(frozen=True)
class WindowFacts:
    """The contents of window.json for a finished window.

    ``staleness`` counts records by the settings' bins, ``domains`` by domain. ``segments`` maps
    each file to its SHA-256.
    """

    window: str
    rows: int
    scored: int
    snapshot: str | None
    mean_staleness_ms: float | None
    max_staleness_ms: int | None
    staleness: list[int]
    domains: dict[str, int]
    segments: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wanted:
    """Examples whose records are wanted: their ids [M], ascending and distinct, and their times [M]
    in ms (the earliest, if several share an id)."""

    ids: NDArray[np.int64]
    event_time: NDArray[np.int64]


class ScoreLog:
    """The log in ``folder``; ``logits`` names the logit columns that are read or written.

    Example::

        >>> from tempfile import mkdtemp
        >>> log = ScoreLog(Path(mkdtemp()))
        >>> records = pl.DataFrame(
        ...     {"example_id": [1, 2], "logit": [0.5, -2.0], "snapshot": ["first", "first"]}
        ...     | {"high_water_mark": [1_000, 1_000], "staleness_ms": [200, 300]}
        ... )
        >>> log.write_chunk("w1", 0, records)
        2
        >>> log.finish(WindowFacts("w1", 2, 2, "first", 250.0, 300, [2], {"feed": 2}))
        >>> window = Window("w1", start_ms=1_000, end_ms=2_000, rows=2, max_label_delay_ms=0)
        >>> examples = pl.DataFrame(
        ...     {"example_id": [2, 3], "event_time": [1_300, 1_400], "label_time": [1_300, 1_400]}
        ... )
        >>> log.join(examples, window)["score", "staleness_ms"].rows()
        [(-2.0, 300), (None, None)]
    """

    def __init__(self, folder: Path, logits: Sequence[str] = (LOGIT,)) -> None:
        self.folder = folder
        self.logits = list(logits)
        common = {
            name: dtype for name, dtype in SCORE_SCHEMA.items() if name != LOGIT or LOGIT in logits
        }
        self.schema = common | {name: pl.Float32 for name in logits if name != LOGIT}
        # A text per record would cost more than everything else
        self._read_schema = self.schema | {"snapshot": pl.Categorical}
        self._facts: LogFacts | None = None

    @property
    def facts(self) -> LogFacts:
        """The contents of log.json; defaults for a hand-made log without one."""
        if self._facts is None:
            path = self.folder / LOG_FILE
            self._facts = _read_facts(path, LogFacts) if path.is_file() else LogFacts()
        return self._facts

    def describe(self, wait_ms: int | None, snapshots: list[Snapshot]) -> None:
        """Write log.json."""
        marks = {
            s.name: {"high_water_mark": s.high_water_mark, "weights_hash": s.weights_hash}
            for s in snapshots
        }
        self.write_facts(LogFacts(wait_ms, marks))

    def write_facts(self, facts: LogFacts) -> None:
        """Write log.json."""
        self._facts = facts
        write_atomically(self.folder / LOG_FILE, _json(asdict(facts)))

    def window(self, name: str) -> WindowFacts | None:
        """The facts of a finished window; None if it is not finished.

        Raises:
            InputError: its window.json is damaged.
        """
        path = self.folder / name / WINDOW_FILE
        return _read_facts(path, WindowFacts) if path.is_file() else None

    def holds(self, name: str) -> bool:
        """Whether the window is complete."""
        return self._by_hand(name).is_file() or (self.folder / name / WINDOW_FILE).is_file()

    def segments(self, name: str) -> list[Path]:
        """The window's segments, in order.

        Raises:
            InputError: window.json names a file that is missing or has changed since it was
                written.
        """
        if self._by_hand(name).is_file():
            return [self._by_hand(name)]
        folder = self.folder / name
        facts = self.window(name)
        for segment, digest in ({} if facts is None else facts.segments).items():
            check_file(folder / segment, digest, REMEDY)
        return sorted(folder.glob(f"{SEGMENT_PREFIX}*.parquet"))

    def write_chunk(
        self, name: str, index: int, records: pl.DataFrame, domains: dict[str, int] | None = None
    ) -> int:
        """Write the window's ``index``-th segment, which contains only new keys.

        Args:
            records: records with ``schema``; exact repetitions, and further records of an example,
                are left out (the first one stays).
            domains: number of records by domain, stored in the file for the report.

        Returns:
            The number of records written.

        Raises:
            ScoreConflictError: a repetition by the same snapshot has a different logit.
            InputError: this segment exists already, with more records.
        """
        fresh = self._new(name, records)
        path = self.folder / name / f"{SEGMENT_PREFIX}{index:05d}.parquet"
        there = pq.read_metadata(path).num_rows if path.is_file() else 0
        if there > fresh.height:
            raise InputError(
                f"{path}: holds {there:,} records, and {fresh.height:,} would replace them; "
                f"another run is scoring this window; wait for it to end"
            )
        _write_segment(path, fresh, {"domains": json.dumps(domains or {}, sort_keys=True)})
        return fresh.height

    def finish(self, facts: WindowFacts) -> None:
        """Mark a window as done."""
        (self.folder / facts.window).mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / facts.window / WINDOW_FILE, _json(asdict(facts)))

    def drop(self, name: str) -> None:
        """Remove a window, ``window.json`` first, so that a half-removed window does not look
        done."""
        folder = self.folder / name
        (folder / WINDOW_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def join(self, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        """``frame`` with ``score`` (Float32) and ``staleness_ms`` (Int64) added, null where an
        example has no score in time.

        A column ``logit_<task>`` of ``logits`` becomes ``score_<task>``. Only ``frame`` and one row
        group of the log are in memory, however long the log is.

        Args:
            frame: examples of ``window`` with example_id, event_time and label_time.

        Raises:
            LookAheadError: a score's snapshot knows labels from the example's time or later.
            InputError: the window is not scored and its examples have not waited long enough, or a
                record's snapshot is not in log.json.
        """
        if not self.holds(window.name):
            self._check_waited(frame, window)
            missing = [_none(score_name(name), pl.Float32) for name in self.logits]
            return frame.with_columns(*missing, _none("staleness_ms", pl.Int64))
        wanted, rows = _wanted(frame)
        found = (
            [self._found(segment, wanted) for segment in self.segments(window.name)]
            if frame.height
            else []
        )
        records = _first_of_each(pl.concat(found)) if found else self._none_found()
        values = [
            *(records[name].alias(score_name(name)) for name in self.logits),
            records["high_water_mark"],
        ]
        if not np.array_equal(
            records[PLACE].to_numpy(), rows
        ):  # usually true: one record per example, in order
            record_of = np.full(len(wanted.ids), -1)
            record_of[records[PLACE].to_numpy()] = np.arange(records.height)
            of_row = pl.Series(record_of[rows], dtype=pl.Int64)  # -1: no record
            at = pl.when(of_row >= 0).then(of_row)
            values = pl.DataFrame(values).select(pl.all().gather(at)).get_columns()
        *scores, mark = values
        return frame.hstack([*scores, (frame["event_time"] - mark).alias("staleness_ms")])

    def windows(self) -> set[str]:
        """Names of all windows with any data."""
        files = [*self.folder.glob(f"*/{WINDOW_FILE}"), *self.folder.glob(f"*/{SEGMENT_PREFIX}*")]
        return {path.parent.name for path in files}

    def used(self) -> dict[str, list[str]]:
        """Finished windows by the snapshot that scored them."""
        by_snapshot: dict[str, list[str]] = {}
        for path in sorted(self.folder.glob(f"*/{WINDOW_FILE}")):
            snapshot = _read_facts(path, WindowFacts).snapshot
            if snapshot is not None:
                by_snapshot.setdefault(snapshot, []).append(path.parent.name)
        return by_snapshot

    def _by_hand(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def _check_waited(self, frame: pl.DataFrame, window: Window) -> None:
        wait = self.facts.wait_ms
        waited = (frame["label_time"] - frame["event_time"]).min() if frame.height else None
        if wait is None or (isinstance(waited, int) and waited < wait):
            missing = self.folder / window.name
            raise InputError(
                f"{missing}: no teacher scores for window {window.name}; run the augment stage "
                f"first"
            )

    def _new(self, name: str, records: pl.DataFrame) -> pl.DataFrame:
        fresh = _first_of_each(records.select(list(self.schema)).cast(self.schema))  # type: ignore[arg-type]
        for segment in self.segments(name):
            known = self._read(
                segment, np.unique(fresh["example_id"].drop_nulls().to_numpy())
            ).drop(PLACE)
            known = known.cast(self.schema)  # type: ignore[arg-type]
            if known.height:
                both = pl.concat([known, fresh.join(known, on="example_id", how="semi")])
                _first_of_each(both)
                fresh = fresh.join(known, on="example_id", how="anti", maintain_order="left")
        return fresh

    def _found(self, path: Path, wanted: _Wanted) -> pl.DataFrame:
        """The file's checked records of the ``wanted`` examples, with their positions."""
        records = self._read(path, wanted.ids)
        if records["high_water_mark"].null_count():
            unmarked = records.filter(pl.col("high_water_mark").is_null())["example_id"][0]
            raise InputError(
                f"{path}: example {unmarked} has no high_water_mark; without it, nothing says what "
                f"its snapshot had seen: give the label time (ms) up to which the snapshot was "
                f"trained"
            )
        event_time = pl.Series(wanted.event_time[records[PLACE].to_numpy()], dtype=pl.Int64)
        ahead = (records["high_water_mark"] > event_time).arg_true()
        if len(ahead):
            example, mark, snapshot = records.select(
                "example_id", "high_water_mark", "snapshot"
            ).row(ahead[0])
            event = event_time[ahead[0]]
            raise LookAheadError(
                f"{path}: example {example} of time {event} is scored by snapshot {snapshot}, "
                f"whose high-water mark {mark} is after it"
            )
        old = (event_time - records["high_water_mark"] > OLDEST_MS).arg_true()
        if len(old):
            example, mark = records.select("example_id", "high_water_mark").row(old[0])
            raise InputError(
                f"{path}: example {example} of time {event_time[old[0]]} has the high_water_mark "
                f"{mark}, more than ten years before; give milliseconds since 1970, not seconds"
            )
        self._check_snapshots(path, records)
        return records

    def _read(self, path: Path, wanted: NDArray[np.int64]) -> pl.DataFrame:
        """The segment's records of the ascending ``wanted`` ids [M], with their positions among
        these.

        Reads only row groups in the ids' range, and keeps one in memory beside the result.
        """
        found: list[pl.DataFrame] = []
        with _opened(path) as file:
            missing = [name for name in self.schema if name not in file.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{path}: no column {missing[0]!r}; a score log has {', '.join(self.schema)}"
                )
            if path.parent == self.folder:
                self._check_by_hand(path, file)
            groups = _groups_between(file, wanted[0], wanted[-1]) if len(wanted) else []
            for batch in file.iter_batches(ROW_GROUP, groups, list(self.schema), use_threads=False):
                records = pl.DataFrame(batch).drop_nulls("example_id")
                if (
                    records.schema["snapshot"] != pl.Categorical
                ):  # a hand-made log may number its snapshots
                    records = records.cast({"snapshot": pl.String})
                _check_marks(path, records)
                rows, place = _matches(records["example_id"].to_numpy(), wanted)
                known = records[rows].cast(self._read_schema)  # type: ignore[arg-type]
                found.append(
                    known.insert_column(known.width, pl.Series(PLACE, place, dtype=pl.Int64))
                )
        return pl.concat(found) if found else self._none_found()

    def _check_by_hand(self, path: Path, file: pq.ParquetFile) -> None:
        """Check that a hand-made file's logits are not probabilities, using the statistics in the
        file's footer.

        Raises:
            InputError: all lie between 0 and 1.
        """
        for name in self.logits:
            known = [one for one in _statistics(file, name) if one.num_values]
            ranges = [(one.min, one.max) for one in known if one.has_min_max]
            is_probability = bool(ranges) and all(low >= 0 and high <= 1 for low, high in ranges)
            if is_probability and sum(one.num_values for one in known) >= FEWEST_PROBABILITIES:
                raise InputError(
                    f"{path}: all values of {name} lie between 0 and 1, as probabilities do and "
                    f"logits do not; write log(p / (1 - p))"
                )

    def _none_found(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self._read_schema | {PLACE: pl.Int64})

    def _check_snapshots(self, path: Path, records: pl.DataFrame) -> None:
        known = self.facts.snapshots
        if known is None:
            return
        names, marks = records["snapshot"], records["high_water_mark"].to_numpy()
        codes = names.to_physical().to_numpy()
        changes = np.flatnonzero((codes[1:] != codes[:-1]) | (marks[1:] != marks[:-1])) + 1
        starts = [0, *changes.tolist()][: len(names)]  # of runs of the same snapshot
        for name, mark in dict.fromkeys((names[start], int(marks[start])) for start in starts):
            if name not in known or known[name]["high_water_mark"] != mark:
                raise InputError(
                    f"{path}: snapshot {name!r} with high-water mark {mark} is not one that "
                    f"{self.folder / LOG_FILE} "
                    "names; run the augment stage again"
                )


def check_snapshots_of_log(log: ScoreLog, snapshots: list[Snapshot], withdrawn: set[str]) -> None:
    """Check that every snapshot that scored exists, has the weights with which it scored, and is
    not withdrawn. Scores without a snapshot are not checked.

    Args:
        withdrawn: hashes of the weights of withdrawn snapshots.

    Raises:
        InputError: a snapshot fails the check; the message names it and its windows.
    """
    by_name = {snapshot.name: snapshot for snapshot in snapshots}
    logged_snapshots = log.facts.own_snapshots
    for name, windows in log.used().items():
        if log.facts.external is not None and name not in logged_snapshots:
            continue  # scored without a snapshot
        logged = logged_snapshots.get(name, {})
        where = f"{log.folder}: windows {', '.join(windows)} are scored by snapshot {name}"
        if logged.get("weights_hash") in withdrawn:
            raise InputError(f"{where}, which is withdrawn; run the augment stage again")
        if name not in by_name or by_name[name].weights_hash != logged.get("weights_hash"):
            raise InputError(
                f"{where}, which is not a snapshot of this teacher; run the augment stage again"
            )


def staleness_parts(segments: list[Path]) -> Iterator[pl.Series]:
    """``staleness_ms`` of each segment in turn, as its writer computed it."""
    for segment in segments:
        yield pl.read_parquet(segment, columns=["staleness_ms"])["staleness_ms"]


def domains_of(segments: list[Path]) -> dict[str, int]:
    """Number of records by domain, as the segments' writer counted them."""
    total: dict[str, int] = {}
    for segment in segments:
        counted = json.loads(pl.read_parquet_metadata(segment).get("domains", "{}"))
        for domain, rows in counted.items():
            total[domain] = total.get(domain, 0) + rows
    return total


def _read_facts(path: Path, kind: type[F]) -> F:
    """The ``kind`` stored in the JSON file ``path``.

    Raises:
        InputError: it is damaged.
    """
    try:
        return kind(**read_json(path))
    except (InputError, TypeError) as error:
        raise damaged(path, REMEDY, error) from error


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path, read_dictionary=["snapshot"])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a Parquet file ({in_one_line(error)})") from error
    with file:
        yield file


def _check_marks(path: Path, records: pl.DataFrame) -> None:
    """Check that a hand-made log's high-water marks are whole milliseconds or null."""
    marks = records["high_water_mark"]
    if marks.dtype.is_integer() or marks.dtype == pl.Null:
        return
    number = marks.cast(pl.Float64, strict=False)
    wrong = (
        marks.is_not_null() & ~(number.is_finite() & (number == number.floor())).fill_null(False)
    ).arg_true()
    if len(wrong) or not marks.dtype.is_float():
        row = wrong[0] if len(wrong) else 0
        raise InputError(
            f"{path}: example {records['example_id'][row]} has the high_water_mark {marks[row]}; "
            f"give whole milliseconds since 1970"
        )


def _wanted(frame: pl.DataFrame) -> tuple[_Wanted, NDArray[np.intp]]:
    """The distinct examples of ``frame``, and each row's position among them."""
    examples, times = frame["example_id"].to_numpy(), frame["event_time"].to_numpy()
    ids, first, rows = np.unique(examples, return_index=True, return_inverse=True)
    earliest = times[first]
    if len(ids) < len(examples):
        np.minimum.at(earliest, rows, times)
    return _Wanted(ids, earliest), rows


def _column(file: pq.ParquetFile, name: str) -> int:
    """The index of a column in the footer."""
    return [file.schema.column(index).path for index in range(len(file.schema))].index(name)


def _statistics(file: pq.ParquetFile, name: str) -> list[Any]:
    """The footer's statistics for a column: an entry per row group that has any."""
    column = _column(file, name)
    groups = (file.metadata.row_group(index) for index in range(file.num_row_groups))
    return [known for one in groups if (known := one.column(column).statistics) is not None]


def _groups_between(file: pq.ParquetFile, low: int, high: int) -> list[int]:
    """Row groups of ``file`` that may contain an example_id from ``low`` to ``high``."""
    column = _column(file, "example_id")
    groups = []
    for index in range(file.num_row_groups):
        known = file.metadata.row_group(index).column(column).statistics
        if known is None or not known.has_min_max or (known.min <= high and low <= known.max):
            groups.append(index)
    return groups


def _matches(
    ids: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions in ``ids`` [N] of ids that are in ``wanted`` [M], in order, and their positions in
    ``wanted``.

    ``wanted`` is ascending; ``ids`` may repeat, in any order.
    """
    if len(wanted) < len(ids) and bool(
        (ids[1:] > ids[:-1]).all()
    ):  # true for our own segments: look up the shorter one
        consecutive = int(ids[-1]) - int(ids[0]) == len(ids) - 1
        row = wanted - int(ids[0]) if consecutive else np.searchsorted(ids, wanted)
        row = np.clip(row, 0, len(ids) - 1)
        known = ids[row] == wanted
        return row[known], np.flatnonzero(known)
    place = np.clip(np.searchsorted(wanted, ids), 0, len(wanted) - 1)
    known = wanted[place] == ids
    return np.flatnonzero(known), place[known]


def _first_of_each(records: pl.DataFrame) -> pl.DataFrame:
    """The first record of each example.

    Raises:
        ScoreConflictError: a later one by the same snapshot has a different logit.
    """
    if records["example_id"].n_unique() == records.height:
        return records
    several = records.filter(pl.col("example_id").is_duplicated())
    by_key = several.group_by("example_id", "snapshot", maintain_order=True)
    for name in (column for column in records.columns if column.startswith(LOGIT)):
        conflicts = by_key.agg(name).filter(pl.col(name).list.n_unique() > 1)
        if not conflicts.height:
            continue
        example, snapshot, logits = conflicts.row(0)
        raise ScoreConflictError(
            f"score log: example {example} has several logits by snapshot {snapshot}: "
            f"{', '.join(f'{logit:.9g}' for logit in logits)}; a record is written once"
        )
    return records.unique("example_id", keep="first", maintain_order=True)


def _write_segment(path: Path, records: pl.DataFrame, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    table = records.sort("example_id").to_arrow().replace_schema_metadata(metadata)
    logits = {name: "PLAIN" for name in records.columns if name.startswith(LOGIT)}
    pq.write_table(
        table,
        partial,
        row_group_size=ROW_GROUP,
        # Decompression took more than half of the join's time; delta encoding is as small
        compression="NONE",
        use_dictionary=CONSTANT,  # type: ignore[arg-type]  # the stubs know no list of columns
        column_encoding={**DELTAS, **logits},
    )
    publish_file(partial, path)


def score_name(logit: str) -> str:
    """The joined column (score, score_<task>) for a log's ``logit`` column (logit,
    logit_<task>)."""
    return f"score{logit.removeprefix(LOGIT)}"


def _none(name: str, dtype: type[pl.DataType]) -> pl.Expr:
    return pl.lit(None, dtype=dtype).alias(name)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
