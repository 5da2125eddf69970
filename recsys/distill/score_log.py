"""The score log: append-only, one record an example, written whole or not at all and never changed.

A folder holds ``log.json`` (what the whole log goes by) and, a window, a folder of segments and
``window.json``, which says that the window is done. A record is late where its segment came after
the window was done; the segment's name then holds the stream time at which it came. A log made by
hand may instead hold one ``<window>.parquet`` a window with the columns of :data:`SCORE_SCHEMA`.
A record has one logit a task: ``logit`` for the data's main one, ``logit_<task>`` for another.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.schema import Window
from recsys.distill.snapshots import LookAheadError, Snapshot
from recsys.files import partial_path, publish_file, read_json, write_atomically

LOG_FILE = "log.json"
WINDOW_FILE = "window.json"
SEGMENT_PREFIX = "segment-"
LATE_PREFIX = "late-"
LOGIT = "logit"
OWN = "own"  # of log.json's ``external``: the snapshots whose logits have a part in the scores
PLACE = "place"  # column of a record's place among the examples that are wanted
ROW_GROUP = 131_072  # rows; a reader skips groups whose ids it does not want
CONSTANT = ["snapshot", "high_water_mark"]  # columns that seldom change from record to record
# And those that grow slowly
DELTAS = dict.fromkeys(("example_id", "staleness_ms"), "DELTA_BINARY_PACKED")
SCORE_SCHEMA = {
    "example_id": pl.Int64,
    LOGIT: pl.Float32,
    "snapshot": pl.String,
    "high_water_mark": pl.Int64,
    "staleness_ms": pl.Int64,
}


class ScoreConflictError(InputError):
    """Two records of one example by one snapshot with different logits."""


@dataclass(frozen=True)
class Segment:
    """A file of records; ``arrival_ms`` is the stream time at which a late one came, None for one
    in time."""

    path: Path
    arrival_ms: int | None = None


@dataclass(frozen=True)
class LogFacts:
    """log.json: ``wait_ms`` as in :class:`recsys.distill.augment_settings.AugmentSettings` (None:
    wait for every window), and the high-water mark and weights' hash of each snapshot that scored;
    None where the log does not tell. ``external`` says what scores of something
    else's are from; None where snapshots alone have scored."""

    wait_ms: int | None = None
    snapshots: dict[str, dict[str, Any]] | None = None
    external: dict[str, Any] | None = None

    @property
    def own_snapshots(self) -> dict[str, dict[str, Any]]:
        """The snapshots that have a part in the scores, as ``snapshots`` has them."""
        found = self.snapshots if self.external is None else self.external.get(OWN)
        return found or {}


@dataclass(frozen=True)
class WindowFacts:
    """window.json of a window that is done.

    ``staleness`` counts records by the bins of the
    settings; ``domains`` by domain. ``segments`` maps each file to its SHA-256.
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
    """Examples to find records of: their ids [M], ascending and distinct, and the time of each, [M]
    ms."""

    ids: NDArray[np.int64]
    event_time: NDArray[np.int64]


class ScoreLog:
    """The log in ``folder``; ``logits`` are its columns of logits that are read or written."""

    def __init__(self, folder: Path, logits: Sequence[str] = (LOGIT,)) -> None:
        self.folder = folder
        self.logits = list(logits)
        common = {
            name: dtype for name, dtype in SCORE_SCHEMA.items() if name != LOGIT or LOGIT in logits
        }
        self.schema = common | {name: pl.Float32 for name in logits if name != LOGIT}
        # A text a record costs more than all else
        self._read_schema = self.schema | {"snapshot": pl.Categorical}
        self._facts: LogFacts | None = None

    @property
    def facts(self) -> LogFacts:
        """log.json; defaults for a log made by hand that has none."""
        if self._facts is None:
            path = self.folder / LOG_FILE
            self._facts = LogFacts(**read_json(path)) if path.is_file() else LogFacts()
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
        """What is known of a window that is done; None where it is not."""
        path = self.folder / name / WINDOW_FILE
        return WindowFacts(**read_json(path)) if path.is_file() else None

    def holds(self, name: str) -> bool:
        """Whether the window's records are all there (late ones may still come)."""
        return self._by_hand(name).is_file() or (self.folder / name / WINDOW_FILE).is_file()

    def segments(self, name: str) -> list[Segment]:
        """The window's segments: those in time in their order, then the late ones by arrival."""
        if self._by_hand(name).is_file():
            return [Segment(self._by_hand(name))]
        in_time = [
            Segment(path)
            for path in sorted((self.folder / name).glob(f"{SEGMENT_PREFIX}*.parquet"))
        ]
        late = sorted((self.folder / name).glob(f"{LATE_PREFIX}*.parquet"))
        return in_time + [Segment(path, int(path.name.split("-")[1])) for path in late]

    def chunks(self, name: str) -> int:
        """How many segments of the window, from the first, are written."""
        return sum(1 for segment in self.segments(name) if segment.arrival_ms is None)

    def write_chunk(
        self, name: str, index: int, records: pl.DataFrame, domains: dict[str, int] | None = None
    ) -> int:
        """Write the window's ``index``-th segment, in which every key is new.

        Args:
            records: of ``schema``; exact repetitions and records of examples that already
                have one are left out (the first one stays).
            domains: records by domain, kept in the file for the report.

        Returns:
            Records written.

        Raises:
            ScoreConflictError: a repetition by the same snapshot has another logit.
        """
        fresh = self._new(name, records)
        path = self.folder / name / f"{SEGMENT_PREFIX}{index:05d}.parquet"
        _write_segment(path, fresh, {"domains": json.dumps(domains or {}, sort_keys=True)})
        return fresh.height

    def add_late(self, name: str, arrival_ms: int, records: pl.DataFrame) -> int:
        """Add records that came at stream time ``arrival_ms``, after the window was done; how many
        were new.

        Raises:
            ScoreConflictError: as :meth:`write_chunk`.
        """
        fresh = self._new(name, records)
        if fresh.height:
            number = sum(1 for segment in self.segments(name) if segment.arrival_ms is not None)
            path = self.folder / name / f"{LATE_PREFIX}{arrival_ms:015d}-{number:05d}.parquet"
            _write_segment(path, fresh, {})
        return fresh.height

    def finish(self, facts: WindowFacts) -> None:
        """Say that a window is done."""
        (self.folder / facts.window).mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / facts.window / WINDOW_FILE, _json(asdict(facts)))

    def drop(self, name: str) -> None:
        """Remove a window, ``window.json`` first, so that no half of it looks done."""
        folder = self.folder / name
        (folder / WINDOW_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def join(self, frame: pl.DataFrame, window: Window) -> pl.DataFrame:
        """``frame`` with ``score`` (Float32) and ``staleness_ms`` (Int64), null where an example
        has no score in time.

        A column ``logit_<task>`` of ``logits`` gives ``score_<task>``.
        Holds ``frame`` and a row group of the log in memory, however long the log is.

        Args:
            frame: examples of ``window`` with example_id, event_time and label_time.

        Raises:
            LookAheadError: a score's snapshot knows labels of the example's time or later.
            InputError: the window is not scored and its examples have not waited long enough, or a
                record is of a snapshot that the log does not know.
        """
        if not self.holds(window.name):
            self._check_waited(frame, window)
            missing = [_none(_score_name(name), pl.Float32) for name in self.logits]
            return frame.with_columns(*missing, _none("staleness_ms", pl.Int64))
        wanted, rows = _wanted(frame)
        found = (
            [self._found(segment, wanted) for segment in self.segments(window.name)]
            if frame.height
            else []
        )
        records = _first_of_each(pl.concat(found)) if found else self._none_found()
        values = [
            *(records[name].alias(_score_name(name)) for name in self.logits),
            records["staleness_ms"],
        ]
        if not np.array_equal(
            records[PLACE].to_numpy(), rows
        ):  # mostly it is: a record an example, in their order
            record_of = np.full(len(wanted.ids), -1)
            record_of[records[PLACE].to_numpy()] = np.arange(records.height)
            of_row = pl.Series(record_of[rows], dtype=pl.Int64)  # -1: no record
            at = pl.when(of_row >= 0).then(of_row)
            values = pl.DataFrame(values).select(pl.all().gather(at)).get_columns()
        return frame.hstack(values)

    def windows(self) -> set[str]:
        """Names of the windows of which there is anything."""
        files = [*self.folder.glob(f"*/{WINDOW_FILE}"), *self.folder.glob(f"*/{SEGMENT_PREFIX}*")]
        return {path.parent.name for path in files}

    def used(self) -> dict[str, list[str]]:
        """Windows by the snapshot that scored them, of windows that are done."""
        by_snapshot: dict[str, list[str]] = {}
        for path in sorted(self.folder.glob(f"*/{WINDOW_FILE}")):
            snapshot = read_json(path)["snapshot"]
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
                segment.path, np.unique(fresh["example_id"].drop_nulls().to_numpy())
            ).drop(PLACE)
            known = known.cast(self.schema)  # type: ignore[arg-type]
            if known.height:
                both = pl.concat([known, fresh.join(known, on="example_id", how="semi")])
                _first_of_each(both)
                fresh = fresh.join(known, on="example_id", how="anti", maintain_order="left")
        return fresh

    def _found(self, segment: Segment, wanted: _Wanted) -> pl.DataFrame:
        """The segment's records of ``wanted`` examples with their places, checked."""
        records = self._read(segment.path, wanted.ids)
        if records["high_water_mark"].null_count():
            unmarked = records.filter(pl.col("high_water_mark").is_null())["example_id"][0]
            raise InputError(
                f"{segment.path}: example {unmarked} has no high_water_mark; without it nobody "
                f"knows what its "
                "snapshot had seen: give the label time (ms) up to which the snapshot was trained"
            )
        event_time = pl.Series(wanted.event_time[records[PLACE].to_numpy()], dtype=pl.Int64)
        ahead = (records["high_water_mark"] > event_time).arg_true()
        if len(ahead):
            example, mark, snapshot = records.select(
                "example_id", "high_water_mark", "snapshot"
            ).row(ahead[0])
            event = event_time[ahead[0]]
            raise LookAheadError(
                f"{segment.path}: example {example} of time {event} is scored by snapshot "
                f"{snapshot}, whose "
                f"high-water mark {mark} lies after it"
            )
        self._check_snapshots(segment.path, records)
        if segment.arrival_ms is not None and self.facts.wait_ms is not None:
            records = records.filter(event_time + self.facts.wait_ms >= segment.arrival_ms)
        return records

    def _read(self, path: Path, wanted: NDArray[np.int64]) -> pl.DataFrame:
        """The segment's records of the ``wanted`` ids [M], which ascend, with their place among
        these.

        Reads only row groups in their range of ids, and holds one of them beside what it has found.
        """
        found: list[pl.DataFrame] = []
        with pq.ParquetFile(path, read_dictionary=["snapshot"]) as file:
            missing = [name for name in self.schema if name not in file.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{path}: no column {missing[0]!r}; a score log has {', '.join(self.schema)}"
                )
            groups = _groups_between(file, wanted[0], wanted[-1]) if len(wanted) else []
            for batch in file.iter_batches(ROW_GROUP, groups, list(self.schema), use_threads=False):
                records = pl.DataFrame(batch).drop_nulls("example_id")
                if (
                    records.schema["snapshot"] != pl.Categorical
                ):  # a log made by hand may number its snapshots
                    records = records.cast({"snapshot": pl.String})
                rows, place = _matches(records["example_id"].to_numpy(), wanted)
                known = records[rows].cast(self._read_schema)  # type: ignore[arg-type]
                found.append(
                    known.insert_column(known.width, pl.Series(PLACE, place, dtype=pl.Int64))
                )
        return pl.concat(found) if found else self._none_found()

    def _none_found(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self._read_schema | {PLACE: pl.Int64})

    def _check_snapshots(self, path: Path, records: pl.DataFrame) -> None:
        known = self.facts.snapshots
        if known is None:
            return
        names, marks = records["snapshot"], records["high_water_mark"].to_numpy()
        codes = names.to_physical().to_numpy()
        changes = np.flatnonzero((codes[1:] != codes[:-1]) | (marks[1:] != marks[:-1])) + 1
        starts = [0, *changes.tolist()][: len(names)]  # of runs of one snapshot
        for name, mark in dict.fromkeys((names[start], int(marks[start])) for start in starts):
            if name not in known or known[name]["high_water_mark"] != mark:
                raise InputError(
                    f"{path}: snapshot {name!r} with high-water mark {mark} is not one that "
                    f"{self.folder / LOG_FILE} "
                    "names; run the augment stage again"
                )


def check_snapshots_of_log(log: ScoreLog, snapshots: list[Snapshot], withdrawn: set[str]) -> None:
    """Check that every snapshot that scored exists, has the weights that scored, and is not
    withdrawn. Scores that no snapshot has a part in are not looked at.

    Args:
        withdrawn: weights' hashes of withdrawn snapshots.

    Raises:
        InputError: one does not; the message names it and its windows.
    """
    by_name = {snapshot.name: snapshot for snapshot in snapshots}
    logged_snapshots = log.facts.own_snapshots
    for name, windows in log.used().items():
        if log.facts.external is not None and name not in logged_snapshots:
            continue  # scored by something else alone
        logged = logged_snapshots.get(name, {})
        where = f"{log.folder}: windows {', '.join(windows)} are scored by snapshot {name}"
        if logged.get("weights_hash") in withdrawn:
            raise InputError(f"{where}, which is withdrawn; run the augment stage again")
        if name not in by_name or by_name[name].weights_hash != logged.get("weights_hash"):
            raise InputError(
                f"{where}, which is not a snapshot of this teacher; run the augment stage again"
            )


def staleness_parts(segments: list[Segment]) -> Iterator[pl.Series]:
    """``staleness_ms`` of each segment in turn."""
    for segment in segments:
        yield pl.read_parquet(segment.path, columns=["staleness_ms"])["staleness_ms"]


def domains_of(segments: list[Segment]) -> dict[str, int]:
    """Records by domain, as the segments' writer has counted them."""
    total: dict[str, int] = {}
    for segment in segments:
        counted = json.loads(pl.read_parquet_metadata(segment.path).get("domains", "{}"))
        for domain, rows in counted.items():
            total[domain] = total.get(domain, 0) + rows
    return total


def _wanted(frame: pl.DataFrame) -> tuple[_Wanted, NDArray[np.intp]]:
    """The examples of ``frame``, and the place of each of its rows among them."""
    ids, first, rows = np.unique(
        frame["example_id"].to_numpy(), return_index=True, return_inverse=True
    )
    return _Wanted(ids, frame["event_time"].to_numpy()[first]), rows


def _groups_between(file: pq.ParquetFile, low: int, high: int) -> list[int]:
    """Row groups of ``file`` that may hold an example_id from ``low`` to ``high``."""
    column = [file.schema.column(index).path for index in range(len(file.schema))].index(
        "example_id"
    )
    groups = []
    for index in range(file.num_row_groups):
        known = file.metadata.row_group(index).column(column).statistics
        if known is None or not known.has_min_max or (known.min <= high and low <= known.max):
            groups.append(index)
    return groups


def _matches(
    ids: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places in ``ids`` [N] of those in ``wanted`` [M], in their order, and their places in
    ``wanted``.

    ``wanted`` ascends; ``ids`` may repeat and are in any order.
    """
    if len(wanted) < len(ids) and bool(
        (ids[1:] > ids[:-1]).all()
    ):  # as our own segments: look up the fewer
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
        ScoreConflictError: a later one by the same snapshot has another logit.
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
        # Decompressing took more than half of the join's time; delta encoding is as small
        compression="NONE",
        use_dictionary=CONSTANT,  # type: ignore[arg-type]  # the stubs know no list of columns
        column_encoding={**DELTAS, **logits},
    )
    publish_file(partial, path)


def _score_name(logit: str) -> str:
    """score, score_<task>."""
    return f"score{logit.removeprefix(LOGIT)}"


def _none(name: str, dtype: type[pl.DataType]) -> pl.Expr:
    return pl.lit(None, dtype=dtype).alias(name)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
