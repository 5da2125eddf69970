"""Event times: convert numbers, ISO 8601 text, formatted text and dates to ms since the epoch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import polars as pl

from recsys.config import InputError
from recsys.data.encoding import milliseconds
from recsys.data.raw_values import MomentSettings
from recsys.data.settings import RowClockSettings

PER_MILLISECOND = {"s": 1_000, "ms": 1, "us": 1 / 1_000, "ns": 1 / 1_000_000}
NOT_READ = "missing or unparsable time"
NO_LOCAL_TIME = "ambiguous or nonexistent local time"
IMPLAUSIBLE = "implausible time"
MEDIAN_OF = 100_000  # times, from the first rows
# Larger numbers are implausible in every unit but ns, and overflow when multiplied by 1,000
LARGEST = 9.2e15
ISO = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<time>\d{2}:\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r"\s?(?P<zone>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)

Rows = TypeVar("Rows", pl.Series, pl.Expr)


@dataclass
class TimesSeen:
    """Statistics of a time column, gathered block by block, for judging the whole column in
    :meth:`check`."""

    known: int = 0
    outside: int = 0
    not_iso: int = 0
    texts: int = 0
    moments: int = 0
    example: str | None = None  # a text that could not be read
    all_numbers: bool = True  # whether all of those texts are numbers
    values: list[pl.Series] = field(default_factory=list)  # the first known ones, as numbers
    outside_ms: list[pl.Series] = field(default_factory=list)  # the first implausible times

    def plus(self, other: "TimesSeen") -> None:
        """Take what the rows behind these have shown."""
        self.known += other.known
        self.outside += other.outside
        self.not_iso += other.not_iso
        self.texts += other.texts
        self.moments += other.moments
        self.example = other.example if self.example is None else self.example
        self.all_numbers &= other.all_numbers
        for mine, more in ((self.values, other.values), (self.outside_ms, other.outside_ms)):
            for one in more:
                _keep_first(mine, lambda one=one: one)

    def check(self, settings: MomentSettings) -> None:
        """Refuse a column if most of it does not match the settings.

        Raises:
            InputError: most of it does not match; the message says what to set.
        """
        if 2 * self.not_iso > self.texts:
            hint = (
                "set unit: s, ms, us or ns"
                if self.all_numbers
                else "set format, such as '%m/%d/%Y %H:%M:%S' (month first) or '%d/%m/%Y %H:%M:%S'"
            )
            raise InputError(
                f"{settings.where('unit')}: column {settings.column!r} holds {self.example!r}, "
                f"which is not an ISO 8601 time; {hint}"
            )
        if settings.format is not None and self.texts and not self.moments:
            raise InputError(
                f"{settings.where('format')}: {settings.format!r} does not match any time in "
                f"column {settings.column!r}, for example {self.example!r}"
            )
        if 2 * self.outside > self.known:
            self._refuse_span(settings)

    def _refuse_span(self, settings: MomentSettings) -> None:
        low, high = _bounds(settings)
        middle = pl.concat(self.outside_ms).median()
        assert isinstance(middle, float)
        message = (
            f"{settings.where('unit')}: with unit: {settings.unit} most times of column "
            f"{settings.column!r} are outside {settings.earliest} to {settings.latest}, in the "
            f"middle {_shown(middle)}; "
        )
        if settings.unit != "datetime":
            number = pl.concat(self.values).median()
            assert isinstance(number, float)
            for unit, factor in PER_MILLISECOND.items():
                if low <= number * factor < high:
                    raise InputError(f"{message}unit: {unit} would give {_shown(number * factor)}")
        raise InputError(f"{message}if they are right, set time.earliest and time.latest")


def event_times(
    column: pl.Series, settings: MomentSettings, seen: TimesSeen | None = None
) -> tuple[pl.Series, pl.Series]:
    """Event times as Int64 ms since the epoch, and why a row has none (null where it has one).

    Args:
        seen: collects statistics for judging the whole column if ``column`` is only a block of it.

    Raises:
        InputError: the column as a whole does not match the settings, or most of its times are
            implausible; the message says what to set.
    """
    whole = TimesSeen() if seen is None else seen
    if settings.unit == "datetime":
        time, reason = _of_datetimes(column, settings, whole)
    else:
        time, reason = _of_numbers(column, settings), pl.Series("reason", [], pl.String)
    frame = pl.DataFrame({"time": time})
    frame = frame.with_columns(
        reason=reason if len(reason) else pl.lit(None, dtype=pl.String),
    )
    low, high = _bounds(settings)
    outside = (pl.col("time") < low) | (pl.col("time") >= high)
    implausible = frame.filter(outside)["time"]
    whole.known += time.count()
    whole.outside += len(implausible)
    _keep_first(whole.outside_ms, lambda: implausible)
    if settings.unit != "datetime":
        _keep_first(whole.values, lambda: column.cast(pl.Float64, strict=False).drop_nulls())
    if seen is None:
        whole.check(settings)
    frame = frame.with_columns(
        reason=pl.when(pl.col("time").is_null())
        .then(pl.col("reason").fill_null(NOT_READ))
        .when(outside)
        .then(pl.lit(IMPLAUSIBLE))
    )
    return frame["time"], frame["reason"]


def _bounds(settings: MomentSettings) -> tuple[int, int]:
    return (
        milliseconds(settings.earliest, settings.where("earliest")),
        milliseconds(settings.latest, settings.where("latest")),
    )


def _keep_first(kept: list[pl.Series], more: Callable[[], pl.Series]) -> None:
    """Add as much of ``more`` as is needed for a median in a message."""
    room = MEDIAN_OF - sum(len(one) for one in kept)
    if room > 0:
        kept.append(more().head(room))


def row_times(rows: Rows, clock: RowClockSettings, window_ms: int) -> Rows:
    """Times, Int64 ms, of rows at given positions [N] in the log; every window gets the same number
    of rows."""
    start_ms = milliseconds(clock.start, clock.where("start")) // window_ms * window_ms
    window, place = rows // clock.rows_per_window, rows % clock.rows_per_window
    return start_ms + window * window_ms + place * window_ms // clock.rows_per_window


def whole_times(column: pl.Series, settings: MomentSettings) -> pl.Series:
    """As :func:`event_times` for a complete column; null where a row has no time.

    Raises:
        InputError: as :func:`event_times`, or most of the column does not match the settings.
    """
    seen = TimesSeen()
    time, _ = event_times(column, settings, seen)
    seen.check(settings)
    return time


def _of_numbers(column: pl.Series, settings: MomentSettings) -> pl.Series:
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        raise InputError(
            f"{settings.where('unit')}: column {column.name!r} holds {column.dtype}, not numbers; "
            f"set unit: datetime"
        )
    value = pl.col("value")
    if column.dtype == pl.String:
        value = value.str.strip_chars()
    whole = value.cast(pl.Int64, strict=False)
    if column.dtype.is_float():
        whole = pl.when(value == value.floor()).then(whole)
    real = value.cast(pl.Float64, strict=False)
    assert settings.unit != "datetime"
    factor = PER_MILLISECOND[settings.unit]
    if factor >= 1:
        whole = whole.clip(-LARGEST, LARGEST).cast(pl.Int64) * int(factor)
    else:
        whole = whole // round(1 / factor)
    real = (real * factor).floor().cast(pl.Int64, strict=False)
    return pl.DataFrame({"value": column}).select(value=pl.coalesce(whole, real))["value"]


def _of_datetimes(
    column: pl.Series, settings: MomentSettings, seen: TimesSeen
) -> tuple[pl.Series, pl.Series]:
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
        moments = column.cast(pl.Datetime("ms", getattr(dtype, "time_zone", None)))
        return _in_utc(moments, moments.is_not_null(), settings)
    if dtype.is_numeric() and settings.format is None:
        raise InputError(
            f"{settings.where('unit')}: column {column.name!r} holds numbers; set unit: s, ms, us "
            f"or ns, or, for digits like 20240131, format: '%Y%m%d'"
        )
    if dtype.is_integer():
        column, dtype = column.cast(pl.String), pl.String()
    if dtype not in (pl.String, pl.Null):
        raise InputError(
            f"{settings.where('column')}: column {column.name!r} holds {dtype}, not times"
        )
    text = column.cast(pl.String).str.strip_chars()
    read = _of_iso if settings.format is None else _of_format
    return read(text, settings, seen)


def _of_iso(
    text: pl.Series, settings: MomentSettings, seen: TimesSeen
) -> tuple[pl.Series, pl.Series]:
    parts = text.str.extract_groups(ISO).struct.unnest()
    is_iso = parts["date"].is_not_null()
    wrong = text.filter(~is_iso & text.is_not_null())
    seen.texts += text.count()
    seen.not_iso += len(wrong)
    if len(wrong):
        seen.example = wrong[0] if seen.example is None else seen.example
        seen.all_numbers &= bool(wrong.str.contains(r"^-?\d+(\.\d+)?$").all())
    clock = pl.concat_str(
        "date", pl.lit(" "), pl.col("time").fill_null("00:00"), pl.lit(":"),
        pl.col("second").fill_null("00"),
    )  # fmt: skip
    thousandths = pl.col("fraction").fill_null("").str.pad_end(3, "0").str.slice(0, 3)
    digits = pl.col("zone").str.replace(":", "")
    minutes = 60 * digits.str.slice(1, 2).cast(pl.Int64, strict=False) + digits.str.slice(
        3, 2
    ).cast(pl.Int64, strict=False).fill_null(0)
    offset = (
        pl.when(pl.col("zone").is_in(["Z", "z", "UTC"]))
        .then(0)
        .otherwise(pl.when(pl.col("zone").str.starts_with("-")).then(-minutes).otherwise(minutes))
    )
    found = parts.select(
        local=clock.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="ms")
        + pl.duration(milliseconds=thousandths.cast(pl.Int64)),
        offset=offset,
    )
    naive, reason = _in_utc(found["local"], found["local"].is_not_null(), settings)
    ahead = found["offset"].is_not_null()
    fixed = found["local"].dt.epoch("ms") - found["offset"] * 60_000
    return (
        fixed.zip_with(ahead, naive),
        reason.set(ahead & found["local"].is_not_null(), None),
    )


def _of_format(
    text: pl.Series, settings: MomentSettings, seen: TimesSeen
) -> tuple[pl.Series, pl.Series]:
    form = settings.format or ""
    if ("%H" in form or "%I" in form) and "%M" not in form:  # Avazu's 14102100
        text, form = text + ":00", form + ":%M"
    try:
        moments = text.str.to_datetime(form, strict=False, time_unit="ms")
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{settings.where('format')}: {str(error).splitlines()[0]}, got {settings.format!r}"
        ) from error
    seen.texts += text.count()
    seen.moments += moments.count()
    if seen.example is None and text.count():
        seen.example = text.drop_nulls()[0]
    return _in_utc(moments, moments.is_not_null(), settings)


def _in_utc(
    moments: pl.Series, known: pl.Series, settings: MomentSettings
) -> tuple[pl.Series, pl.Series]:
    """Datetimes in UTC, in ms; those without a zone are taken to be in ``settings.zone``, or in
    UTC."""
    aware = getattr(moments.dtype, "time_zone", None) is not None
    if aware or settings.zone is None:
        time = moments.dt.epoch("ms")
    else:
        time = moments.dt.replace_time_zone(
            settings.zone, ambiguous="null", non_existent="null"
        ).dt.epoch("ms")
    lost = pl.DataFrame({"lost": known & time.is_null()})
    reason = pl.when("lost").then(pl.lit(f"{NO_LOCAL_TIME} in {settings.zone}"))
    return time, lost.select(reason=reason)["reason"]


def _shown(time: float) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time)
    except OverflowError:
        return f"{time / 1000:.3g} s after 1970"
    return moment.strftime("%Y-%m-%d %H:%M")
