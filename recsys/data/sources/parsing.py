"""From raw rows of a table log to rows with times, labels and a domain, and the bad rows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.encoder import cleaned, clock, domain_index
from recsys.data.names import EVENT_TIME, NUMBER, OWN
from recsys.data.schema import MAIN_TASK
from recsys.data.settings import TableSettings
from recsys.data.sources.base import (
    CONTENT_CHARACTERS,
    DOMAIN,
    LABEL,
    LABEL_TIME,
    OWN_WEIGHT,
    ROW,
)
from recsys.data.sources.expressions import with_expressions
from recsys.data.sources.labels import LabelsSeen, binary_labels, impression_lists
from recsys.data.sources.table_encoder import CLOCK, domain_encoding, table_domains
from recsys.data.sources.times import TimesSeen, event_times, row_times
from recsys.units import MS_PER_SECOND

REASON = f"{OWN}reason"


@dataclass
class Seen:
    """What only the whole log decides, block after block."""

    time: TimesSeen = field(default_factory=TimesSeen)
    label_time: TimesSeen = field(default_factory=TimesSeen)
    labels: defaultdict[str, LabelsSeen] = field(default_factory=lambda: defaultdict(LabelsSeen))

    def plus(self, other: "Seen") -> None:
        """Take what the rows behind these have shown."""
        self.time.plus(other.time)
        self.label_time.plus(other.label_time)
        for task, one in other.labels.items():
            self.labels[task].zero |= one.zero
            self.labels[task].negative |= one.negative


@dataclass
class Parsed:
    """Rows with event time, label time, domain and (if the log has them) labels; and bad rows."""

    good: pl.DataFrame
    bad: pl.DataFrame


def parse_rows(
    raw: pl.DataFrame,
    settings: TableSettings,
    files: Sequence[str],
    starts: NDArray[np.int64],
    seen: Seen,
    window_ms: int,
) -> Parsed:
    """The rows of a block, and those of them that are bad.

    Args:
        files: names, and ``starts`` [F] the first row of each.
        seen: is brought up to date.
    """
    domain = _domain(raw, settings)
    numbers = [name for name in dict.fromkeys(settings.dense) if name in raw.columns]
    times = [one.column for one in (settings.time, settings.label_time) if one is not None]
    weights = [] if settings.weight is None else [settings.weight]
    parsed_columns = dict.fromkeys([*numbers, *times, *weights])
    clean = raw.with_columns(cleaned(raw, settings.null_values, [*parsed_columns]))
    reason: pl.Expr = pl.lit(None, dtype=pl.String)
    if settings.row_clock is not None:
        time = row_times(raw[ROW], settings.row_clock, window_ms)
    else:
        assert settings.time is not None  # checked by TableSettings
        time, no_time = event_times(clean[settings.time.column], settings.time, seen.time)
        reason = pl.coalesce(pl.lit(no_time), reason)
    parsed: dict[str, pl.Series] = {}
    for name in numbers:
        parsed[name] = _number(clean[name])
        wrong = clean[name].is_not_null() & parsed[name].is_null()
        reason = _or(reason, wrong, f"unparsable number in {name}")
    own = [time.alias(EVENT_TIME), domain.alias(DOMAIN)]
    known, wrong_time, late = _label_times(clean, time, settings, seen.label_time)
    for task, column in settings.label_columns.items():
        label, wrong = binary_labels(
            raw[column.column], column, settings.null_values, seen.labels[task]
        )
        expected = "outside {0, 1}" if column.positive is None else "is no number"
        if task == MAIN_TASK:
            reason = _or(reason, label.is_null(), f"label {expected}")
            if settings.attribution_window_s is not None:
                label = label.set(late & label.is_not_null(), 0.0)
            own.append(label.alias(LABEL))
        else:
            reason = _or(reason, wrong, f"label of {task} {expected}")
            own.append(label.alias(f"{LABEL}_{task}"))
    own.append(known.alias(LABEL_TIME))
    reason = pl.coalesce(reason, pl.lit(wrong_time))
    for name in weights:
        weight = _number(clean[name]).cast(pl.Float32)
        usable = (weight.is_finite() & (weight > 0)).fill_null(False)
        reason = _or(reason, ~usable, f"weight in {name} is not a number above 0")
        own.append(weight.alias(OWN_WEIGHT))
    if settings.explode is not None:
        clean, wrong = impression_lists(clean, settings.explode, settings.null_values)
        mark = settings.explode.label_separator
        reason = _or(reason, wrong, f"an element does not end in {mark}0 or {mark}1")
    if settings.sample_negatives is not None:
        for name in (settings.sample_negatives.item, settings.sample_negatives.session):
            reason = _or(reason, clean[name].is_null(), f"missing {name}")
    reason = _or(reason, domain.is_null(), "unknown domain")
    marked = clean.with_columns(*own, reason.alias(REASON))
    bad = marked.filter(pl.col(REASON).is_not_null())
    good = marked.with_columns(
        *clock(name for name in CLOCK if settings.time is not None and name not in raw.columns),
        *(one.alias(NUMBER + name) for name, one in parsed.items()),
    )
    good = good.filter(pl.col(REASON).is_null()).drop(REASON)
    labels = [one.column for one in settings.label_columns.values()]
    shown = dict.fromkeys([*times[:1], *labels, *numbers, *weights])
    content = raw.filter(marked[REASON].is_not_null()).select(
        pl.struct(
            pl.col(name).cast(pl.String, strict=False) if raw.schema[name] == pl.Binary else name
            for name in shown
        ).struct.json_encode()
    )
    return Parsed(
        good,
        pl.DataFrame(
            {
                "row": bad[ROW],
                "file": _files_of(bad[ROW], files, starts),
                "reason": bad[REASON],
                "content": content.to_series().str.slice(0, CONTENT_CHARACTERS),
            }
        ),
    )


def filtered(raw: pl.DataFrame, settings: TableSettings, first: int) -> pl.DataFrame:
    """``raw``, the rows from ``first`` on, with ``own:row`` and the derived columns, less the rows
    that are filtered out."""
    rows = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias(ROW)
    numbered = raw.with_columns(rows)
    if not settings.columns and settings.filter is None:
        return numbered
    return with_expressions(numbered, settings.columns, settings.filter, "table")


def _label_times(
    clean: pl.DataFrame, time: pl.Series, settings: TableSettings, seen: TimesSeen
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """When each row's label is known, Int64 ms, why it cannot be told, where it cannot, and whether
    a positive comes after the attribution window."""
    delay_s = 0.0 if settings.time is None else settings.time.label_delay_s
    default = time + round(delay_s * MS_PER_SECOND)
    if settings.label_time is None:
        reason = pl.Series("reason", [None] * clean.height, dtype=pl.String)
        return default, reason, pl.Series("late", [False] * clean.height, dtype=pl.Boolean)
    column = clean[settings.label_time.column]
    found, reason = event_times(column, settings.label_time, seen)
    frame = pl.DataFrame({"time": time, "found": found, "default": default, "given": column})
    frame = frame.with_columns(reason=reason)
    wrong = (
        pl.when(pl.col("given").is_null())
        .then(None)
        .when(pl.col("reason").is_not_null())
        .then("label: " + pl.col("reason"))
        .when(pl.col("found") < pl.col("time"))
        .then(pl.lit("label known before its event"))
    )
    known, late = pl.coalesce("found", "default"), pl.lit(False)
    if settings.attribution_window_s is not None:
        known = pl.col("time") + round(settings.attribution_window_s * MS_PER_SECOND)
        late = (pl.col("found") > known).fill_null(False)
    told = frame.select(known=known, reason=wrong, late=late)
    return told["known"], told["reason"], told["late"]


def _or(reason: pl.Expr, wrong: pl.Series, text: str) -> pl.Expr:
    """``reason``, and ``text`` for the rows that are wrong and have none yet."""
    return pl.coalesce(reason, pl.when(pl.lit(wrong)).then(pl.lit(text)))


def _number(column: pl.Series) -> pl.Series:
    """Float64; null where it is no number."""
    if column.dtype.is_nested() or column.dtype == pl.Binary or column.dtype.is_temporal():
        raise InputError(f"column {column.name!r} holds {column.dtype}, not numbers")
    return column.cast(pl.Float64, strict=False)


def _files_of(rows: pl.Series, files: Sequence[str], starts: NDArray[np.int64]) -> pl.Series:
    place = np.searchsorted(starts, rows.to_numpy(), side="right") - 1
    return pl.Series("file", [files[index] for index in place], dtype=pl.String)


def _domain(raw: pl.DataFrame, settings: TableSettings) -> pl.Series:
    """Int32 index of the row's domain; null if its value is not listed."""
    domain = domain_encoding(settings)
    if domain is None:
        return pl.Series(DOMAIN, np.zeros(raw.height, dtype=np.int32))
    return domain_index(raw[domain.column], domain, table_domains(settings))
