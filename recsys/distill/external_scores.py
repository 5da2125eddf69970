"""Scores from another model, checked like a snapshot's and written as a score log.

A file has one row per example: its example_id in data/windows, the score, and the time up to which
the scorer knew labels when it made the score.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.schema import Schema, Window, task_columns, window_parts
from recsys.data.sources.files import resolve_files
from recsys.data.sources.reading import read_tables
from recsys.distill.augment_settings import WINDOW_START, AugmentSettings, ExternalSettings
from recsys.distill.score_log import OLDEST_MS, OWN, LogFacts, ScoreLog
from recsys.distill.scoring import milliseconds, report_scores, window_facts, write_segment
from recsys.distill.snapshots import LookAheadError
from recsys.files import PARTIAL_SUFFIX, file_hash

FORMATS = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv", ".csv.zst": "csv"}
CERTAIN = 1e-7  # a probability of 0 or 1 has no finite logit
NAMED = 3  # ids that a message lists
LEARNT = "learnt_until"


@dataclass(frozen=True)
class ExternalReport:
    """Statistics of the files.

    Attributes:
        files: number of files read.
        rows: number of rows in them.
        scored: examples that now have a score in the log.
        examples: all examples of the windows.
        unknown: ids that belong to no example; ``named`` lists some of them.
        not_finite: rows whose score is missing, NaN or infinite.
        unlearnt: scores of the first window with ``window_start``, before which nothing was trained
            on.
        calibration: per window, mean probability over mean label of the scored examples with a
            known label; None if none is positive.
    """

    files: int
    rows: int
    scored: int
    examples: int
    unknown: int
    named: list[int]
    not_finite: int
    unlearnt: int
    calibration: dict[str, float | None]

    def lines(self) -> list[str]:
        """Lines for the user, one per fact."""
        files = f"{self.files:,} file{'s' if self.files > 1 else ''}"
        found = [
            f"external scores: {self.rows:,} rows of {files}; {self.scored:,} of "
            f"{self.examples:,} examples have a score"
        ]
        if self.unknown:
            named = ", ".join(str(one) for one in self.named)
            more = ", ..." if self.unknown > len(self.named) else ""
            found.append(f"external scores: {self.unknown:,} unknown example ids: {named}{more}")
        if self.not_finite:
            found.append(f"external scores: {self.not_finite:,} missing, NaN or infinite")
        if self.unlearnt:
            found.append(
                f"external scores: {self.unlearnt:,} of the first window are left out: nothing was "
                f"trained before it"
            )
        ratios = ["-" if one is None else f"{one:.2f}" for one in self.calibration.values()]
        found.append(
            f"external scores: calibration by window (mean probability / base rate): "
            f"{' '.join(ratios)}"
        )
        return found


@dataclass(frozen=True)
class GivenScores:
    """Rows of all ``files``: example_id (ascending, distinct), logit (Float32; null: none),
    learnt_until (ms; not with ``window_start``), file (index) and row (from 1)."""

    files: list[Path]
    table: pl.DataFrame

    def place(self, found: pl.DataFrame) -> str:
        """The file and row of the first of ``found``, for messages."""
        file, row = found.sort("file", "row").select("file", "row").row(0)
        return f"{self.files[file]}: row {row}"


def log_external_scores(
    windows_dir: Path,
    settings: AugmentSettings,
    log_dir: Path,
    own: ScoreLog | None = None,
    project_dir: Path = Path(),
) -> ExternalReport:
    """Write the scores of ``settings.external`` as a new score log ``log_dir``.

    Keeps all rows of the files in memory (about 30 bytes each) and the examples of one window.
    Probabilities of 0 and 1 are moved by 1e-7.

    Args:
        own: the project's own scores; an example that also has one of these gets the mean of both
            logits and the later of the two scorers' times.
        project_dir: the folder to which ``external.root`` is relative.

    Raises:
        InputError: a file or column is missing, an example occurs twice, no id is in the data, or
            numbers do not match the settings.
        LookAheadError: a scorer knew labels from after its example's time.
    """
    schema = Schema.load(windows_dir)
    external = settings.external
    task = schema.tasks[0] if external.task is None else external.task
    if task not in schema.tasks:
        raise InputError(
            f"{external.where('task')}: no task {task!r}; the data have {', '.join(schema.tasks)}"
        )
    (logit,), (label,) = schema.columns("logit", [task]), schema.columns("label", [task])
    scores = read_scores(external, project_dir)
    ids = scores.table["example_id"].to_numpy()
    is_known = np.zeros(len(ids), dtype=bool)
    calibration: dict[str, float | None] = {}
    scored, unlearnt = 0, 0
    with new_log(log_dir, schema) as log:
        for window in schema.windows:
            examples = examples_of(windows_dir, window, [label])
            _mark_known(ids, examples["example_id"].to_numpy(), is_known)
            joined = with_scores(scores, examples, window, external)
            if external.learnt_until == WINDOW_START and window == schema.windows[0]:
                unlearnt = joined["logit"].count()
                joined = joined.with_columns(pl.lit(None, dtype=pl.Float32).alias("logit"))
            calibration[window.name] = _calibration(joined, label)
            table = _mean_with(joined, window, logit, log, own)
            scored += log_window(log, window, table, own, settings, schema)
        unknown = ids[~is_known]
        report = ExternalReport(
            files=len(scores.files),
            rows=len(ids),
            scored=scored,
            examples=sum(window.rows for window in schema.windows),
            unknown=len(unknown),
            named=unknown[:NAMED].tolist(),
            not_finite=scores.table["logit"].null_count(),
            unlearnt=unlearnt,
            calibration=calibration,
        )
        if not is_known.any():
            raise InputError(
                f"{external.where('key')}: none of the {len(ids):,} ids, such as {ids[0]}, is an "
                f"example_id of {windows_dir}"
            )
        facts = {
            "read": external.model_dump(),
            "files": {path.as_posix(): file_hash(path) for path in scores.files},
            "unknown": report.unknown,
            "not_finite": report.not_finite,
            "calibration": calibration,
        }
        finish_log(log, windows_dir, facts, own, settings)
    return report


@contextmanager
def new_log(log_dir: Path, schema: Schema) -> Iterator[ScoreLog]:
    """An empty score log, which replaces ``log_dir`` when the block succeeds."""
    partial = log_dir.with_name(f"{log_dir.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield ScoreLog(partial, task_columns("logit", schema.tasks))
    shutil.rmtree(log_dir, ignore_errors=True)
    partial.rename(log_dir)


def log_window(
    log: ScoreLog,
    window: Window,
    scored: pl.DataFrame,
    own: ScoreLog | None,
    settings: AugmentSettings,
    schema: Schema,
) -> int:
    """Write the records of a window's examples (see :func:`_records`) and return their number.

    Args:
        own: the project's own scores, if these are combined with them.
    """
    scorer = _scorer(own, window, settings.teacher)
    records = _records(scored, scorer, log, settings)
    for index, segment in enumerate(records.iter_slices(settings.segment_rows)):
        write_segment(log, window, index, segment, schema)
    log.finish(window_facts(log, window, scorer, settings))
    return records.height


def finish_log(
    log: ScoreLog,
    windows_dir: Path,
    facts: dict[str, Any],
    own: ScoreLog | None,
    settings: AugmentSettings,
) -> None:
    """Write log.json, with ``facts`` about the origin of the scores, and the report."""
    external = facts | {OWN: None if own is None else own.facts.snapshots}
    log.write_facts(LogFacts(milliseconds(settings.wait_hours), None, external))
    report_scores(windows_dir, log.folder, settings)


def read_scores(settings: ExternalSettings, project_dir: Path) -> GivenScores:
    """All scores described by ``settings``.

    Raises:
        InputError: a file or column is missing, an example occurs twice, or numbers do not match
            the settings.
    """
    root = project_dir / settings.root
    # Of a folder, only files of this kind; others, such as notes, are ignored
    patterns = [f"{name}/*.parquet" if (root / name).is_dir() else name for name in settings.files]
    files = resolve_files(patterns, root)
    tables = [
        _read(path, settings).with_columns(pl.lit(number, dtype=pl.UInt32).alias("file"))
        for number, path in enumerate(files)
    ]
    scores = GivenScores(files, pl.concat(tables).sort("example_id", "file", "row"))
    ids = scores.table["example_id"]
    if not len(ids):
        raise InputError(f"{settings.where('files')}: {files[0]} and the others hold no row")
    again = (ids == ids.shift(1)).arg_true()
    if len(again):
        first, second = scores.table[int(again[0]) - 1], scores.table[int(again[0])]
        raise InputError(
            f"{scores.place(second)}: example {ids[int(again[0])]} has a score already, in "
            f"{scores.place(first)}; give one score per example"
        )
    return GivenScores(files, _logits(scores, settings))


def _read(path: Path, settings: ExternalSettings) -> pl.DataFrame:
    """One file's rows, with the unchanged ``score`` (Float64; null: none)."""
    kind = next((kind for end, kind in FORMATS.items() if path.name.endswith(end)), None)
    if kind is None:
        raise InputError(f"{path}: is neither Parquet nor CSV; it must end in {', '.join(FORMATS)}")
    columns = [settings.key, settings.score]
    has_marks = settings.learnt_until != WINDOW_START
    columns += [settings.learnt_until] if has_marks else []
    (frame,) = read_tables([path], kind, columns, lambda _: False)
    read = [
        _whole(frame[settings.key], path, "is not an example_id, a whole number").alias(
            "example_id"
        ),
        _number(frame[settings.score], path).alias("score"),
    ]
    if has_marks:
        hint = (
            "is not a time in whole milliseconds since 1970, without which nobody knows what the "
            "scorer had seen"
        )
        read.append(_whole(frame[settings.learnt_until], path, hint).alias(LEARNT))
    return pl.DataFrame(read).with_row_index("row", offset=1)


def _whole(column: pl.Series, path: Path, hint: str) -> pl.Series:
    """``column`` as Int64.

    Raises:
        InputError: a value is missing or not a whole number.
    """
    if column.dtype.is_integer() or column.dtype == pl.Null:
        whole = column.cast(pl.Int64, strict=False)
    elif column.dtype in (pl.String, pl.Float64, pl.Float32):
        number = column.cast(pl.Float64, strict=False)
        as_float = (
            pl.select(pl.when(number.is_finite() & (number == number.round())).then(number))
            .to_series()
            .cast(pl.Int64, strict=False)
        )
        # Large ids in text must not go through floats
        is_text = column.dtype == pl.String
        whole = column.cast(pl.Int64, strict=False).fill_null(as_float) if is_text else as_float
    else:
        raise InputError(f"{path}: column {column.name!r} holds {column.dtype}; a value {hint}")
    if whole.null_count():
        row = int(whole.is_null().arg_true()[0])
        raise InputError(f"{path}: row {row + 1}: {column.name} {column[row]} {hint}")
    return whole


def _number(column: pl.Series, path: Path) -> pl.Series:
    """``column`` as Float64; null where it is missing, NaN or infinite."""
    number = column.cast(pl.Float64, strict=False)
    if column.dtype == pl.String:
        wrong = (number.is_null() & (column.str.strip_chars() != "")).arg_true()
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"{path}: row {row + 1}: {column.name} {column[row]!r} is not a number"
            )
    return pl.select(pl.when(number.is_finite()).then(number)).to_series()


def _logits(scores: GivenScores, settings: ExternalSettings) -> pl.DataFrame:
    """The table with ``logit`` instead of ``score``.

    Raises:
        InputError: the scores cannot have, or are unlikely to have, the scale in the settings.
    """
    table, where = scores.table, settings.where("scale")
    is_probability = pl.col("score").is_between(0.0, 1.0)
    outside = table.filter(~is_probability)
    if settings.scale == "probability":
        if outside.height:
            raise InputError(
                f"{scores.place(outside)}: score {outside.sort('file', 'row')['score'][0]:g} is "
                f"not a probability; {where}: set logit if the scores are logits"
            )
        probability = pl.col("score").clip(CERTAIN, 1.0 - CERTAIN)
        logit = (probability / (1.0 - probability)).log()
    else:
        if not outside.height and table["score"].count():
            raise InputError(
                f"{where}: all {table['score'].count():,} scores lie between 0 and 1, as "
                f"probabilities do and logits do not; set probability"
            )
        logit = pl.col("score")
    as_float = logit.cast(pl.Float32, strict=False)
    finite = pl.when(as_float.is_finite()).then(as_float)
    return table.with_columns(finite.alias("logit")).drop("score")


def examples_of(windows_dir: Path, window: Window, columns: Sequence[str]) -> pl.DataFrame:
    """Ids, times, domains and further ``columns`` of a window's examples."""
    columns = ["example_id", "event_time", "label_time", "domain", *columns]
    parts = window_parts(windows_dir, window)
    return pl.concat([pl.read_parquet(part, columns=columns) for part in parts])


def _mark_known(
    ids: NDArray[np.int64], examples: NDArray[np.int64], is_known: NDArray[np.bool_]
) -> None:
    """Set ``is_known`` [N] where the ascending ``ids`` [N] are among ``examples`` [M]."""
    place = np.clip(np.searchsorted(ids, examples), 0, len(ids) - 1)
    is_known[place[ids[place] == examples]] = True


def with_scores(
    scores: GivenScores, examples: pl.DataFrame, window: Window, settings: ExternalSettings
) -> pl.DataFrame:
    """``examples`` with ``logit`` and ``learnt_until``, null where there is no score.

    Raises:
        LookAheadError: a scorer knew labels from after its example's time.
        InputError: the scorer's time is more than ten years before the example.
    """
    joined = examples.join(scores.table, on="example_id", how="left", maintain_order="left")
    if settings.learnt_until == WINDOW_START:
        joined = joined.with_columns(pl.lit(window.start_ms, dtype=pl.Int64).alias(LEARNT))
    scored = joined.filter(pl.col("logit").is_not_null())
    ahead = scored.filter(pl.col(LEARNT) > pl.col("event_time")).sort("file", "row")
    if ahead.height:
        example, event, mark = ahead.select("example_id", "event_time", LEARNT).row(0)
        raise LookAheadError(
            f"{scores.place(ahead)}: example {example} of time {event} is scored by a model that "
            f"knew labels until {mark}, after it"
        )
    old = scored.filter(pl.col("event_time") - pl.col(LEARNT) > OLDEST_MS).sort("file", "row")
    if old.height:
        example, event, mark = old.select("example_id", "event_time", LEARNT).row(0)
        raise InputError(
            f"{scores.place(old)}: {settings.learnt_until} {mark} is more than ten years before "
            f"the time {event} of example {example}; give milliseconds since 1970, not seconds"
        )
    return joined


def _calibration(joined: pl.DataFrame, label: str) -> float | None:
    scored = joined.filter(pl.col("logit").is_not_null() & pl.col(label).is_finite())
    clicks = scored[label].cast(pl.Float64).sum()
    probability = 1.0 / (1.0 + (-pl.col("logit").cast(pl.Float64)).exp())
    return scored.select(probability.sum()).item() / clicks if clicks else None


def _records(
    scored: pl.DataFrame, scorer: str, log: ScoreLog, settings: AugmentSettings
) -> pl.DataFrame:
    """Log records of examples, from a frame with the columns ``log.logits``, ``domain`` and
    ``learnt_until``, which is null where there is no score.

    Args:
        scorer: name of the scorer.
    """
    records = scored.select(
        "example_id",
        *log.logits,
        "domain",
        snapshot=pl.lit(scorer),
        high_water_mark=pl.col(LEARNT),
        staleness_ms=pl.col("event_time") - pl.col(LEARNT),
    ).filter(pl.col("high_water_mark").is_not_null())
    limit = milliseconds(settings.max_staleness_hours)
    return records if limit is None else records.filter(pl.col("staleness_ms") <= limit)


def _scorer(own: ScoreLog | None, window: Window, teacher: str) -> str:
    """The snapshot whose logits contribute to the scores of ``window``; ``teacher`` if there is
    none."""
    facts = None if own is None else own.window(window.name)
    return teacher if facts is None or facts.snapshot is None else facts.snapshot


def with_own(frame: pl.DataFrame, own: ScoreLog, window: Window) -> pl.DataFrame:
    """``frame`` with the logits of the project's own teacher in the columns ``own.logits``, null
    where there is none, and with ``learnt_until`` at least that teacher's high-water mark.
    """
    table = own.join(frame, window)
    names = {name.replace("logit", "score", 1): name for name in own.logits}
    own_mark = pl.col("event_time") - pl.col("staleness_ms")
    later = pl.max_horizontal(LEARNT, own_mark).alias(LEARNT)
    return table.with_columns(later).drop("staleness_ms").rename(names)


def _mean_with(
    joined: pl.DataFrame, window: Window, logit: str, log: ScoreLog, own: ScoreLog | None
) -> pl.DataFrame:
    """``joined`` with the columns ``log.logits``: the external score, or its mean with the
    teacher's."""
    mark = pl.when(pl.col("logit").is_not_null()).then(LEARNT)
    table = joined.with_columns(mark.alias(LEARNT)).rename({"logit": "external"})
    if own is None:
        none = pl.lit(None, dtype=pl.Float32)
        return table.with_columns(
            (pl.col("external") if name == logit else none).alias(name) for name in log.logits
        )
    mean = pl.mean_horizontal(logit, "external").cast(pl.Float32)
    return with_own(table, own, window).with_columns(mean.alias(logit))
