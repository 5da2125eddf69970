"""Event times: numbers, ISO 8601 text, text of a given format and dates, to ms since the epoch."""

from datetime import UTC, datetime, timedelta

import polars as pl

from recsys.config import InputError
from recsys.data.encoding import milliseconds
from recsys.data.settings import MomentSettings

PER_MILLISECOND = {"s": 1_000, "ms": 1, "us": 1 / 1_000, "ns": 1 / 1_000_000}
NOT_READ = "missing or unparsable time"
NO_LOCAL_TIME = "ambiguous or nonexistent local time"
IMPLAUSIBLE = "implausible time"
LARGEST = 9.2e15  # numbers beyond are implausible in every unit but ns, and 1,000 of them overflow
ISO = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<time>\d{2}:\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r"\s?(?P<zone>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)


def event_times(column: pl.Series, settings: MomentSettings) -> tuple[pl.Series, pl.Series]:
    """Int64 ms since the epoch, and why a row has none (null where it has one).

    Raises:
        InputError: the column as a whole is not what the settings say, or most of its times are
            implausible; the message says what to set.
    """
    if settings.unit == "datetime":
        time, reason = _of_datetimes(column, settings)
    else:
        time, reason = _of_numbers(column, settings), pl.Series("reason", [], pl.String)
    frame = pl.DataFrame({"time": time})
    frame = frame.with_columns(
        reason=reason if len(reason) else pl.lit(None, dtype=pl.String),
    )
    low, high = (
        milliseconds(settings.earliest, settings.where("earliest")),
        milliseconds(settings.latest, settings.where("latest")),
    )
    outside = (pl.col("time") < low) | (pl.col("time") >= high)
    _check_span(column, frame.filter(outside)["time"], time.count(), settings, low, high)
    frame = frame.with_columns(
        reason=pl.when(pl.col("time").is_null())
        .then(pl.col("reason").fill_null(NOT_READ))
        .when(outside)
        .then(pl.lit(IMPLAUSIBLE))
    )
    return frame["time"], frame["reason"]


def _of_numbers(column: pl.Series, settings: MomentSettings) -> pl.Series:
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        raise InputError(
            f"{settings.where('unit')}: column {column.name!r} holds {column.dtype}, no numbers; "
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


def _of_datetimes(column: pl.Series, settings: MomentSettings) -> tuple[pl.Series, pl.Series]:
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
            f"{settings.where('column')}: column {column.name!r} holds {dtype}, no times"
        )
    text = column.cast(pl.String).str.strip_chars()
    return _of_iso(text, settings) if settings.format is None else _of_format(text, settings)


def _of_iso(text: pl.Series, settings: MomentSettings) -> tuple[pl.Series, pl.Series]:
    parts = text.str.extract_groups(ISO).struct.unnest()
    is_iso = parts["date"].is_not_null()
    known, wrong = text.count(), text.filter(~is_iso & text.is_not_null())
    if 2 * len(wrong) > known:
        number = wrong.str.contains(r"^-?\d+(\.\d+)?$").all()
        hint = (
            "set unit: s, ms, us or ns"
            if number
            else "set format, such as '%m/%d/%Y %H:%M:%S' (month first) or '%d/%m/%Y %H:%M:%S'"
        )
        raise InputError(
            f"{settings.where('unit')}: column {settings.column!r} holds {wrong[0]!r}, which is no "
            f"ISO 8601 time; {hint}"
        )
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


def _of_format(text: pl.Series, settings: MomentSettings) -> tuple[pl.Series, pl.Series]:
    form = settings.format or ""
    if ("%H" in form or "%I" in form) and "%M" not in form:  # Avazu's 14102100
        text, form = text + ":00", form + ":%M"
    try:
        moments = text.str.to_datetime(form, strict=False, time_unit="ms")
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{settings.where('format')}: {str(error).splitlines()[0]}, got {settings.format!r}"
        ) from error
    if text.count() and not moments.count():
        raise InputError(
            f"{settings.where('format')}: {settings.format!r} fits no time of column "
            f"{settings.column!r}, for example {text.drop_nulls()[0]!r}"
        )
    return _in_utc(moments, moments.is_not_null(), settings)


def _in_utc(
    moments: pl.Series, known: pl.Series, settings: MomentSettings
) -> tuple[pl.Series, pl.Series]:
    """ms of datetimes: those without a zone are in ``settings.zone``, else UTC."""
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


def _check_span(
    column: pl.Series,
    outside: pl.Series,
    known: int,
    settings: MomentSettings,
    low: int,
    high: int,
) -> None:
    """Refuse a column of which more than half the known times are implausible."""
    if 2 * len(outside) <= known:
        return
    middle = outside.median()
    assert isinstance(middle, float)
    message = (
        f"{settings.where('unit')}: with unit: {settings.unit} most times of column "
        f"{settings.column!r} lie outside {settings.earliest} to {settings.latest}, in the middle "
        f"{_shown(middle)}; "
    )
    if settings.unit != "datetime":
        number = column.cast(pl.Float64, strict=False).median()
        assert isinstance(number, float)
        for unit, factor in PER_MILLISECOND.items():
            if low <= number * factor < high:
                raise InputError(f"{message}unit: {unit} would give {_shown(number * factor)}")
    raise InputError(f"{message}if they are right, set time.earliest and time.latest")


def _shown(time: float) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time)
    except OverflowError:
        return f"{time / 1000:.3g} s after 1970"
    return moment.strftime("%Y-%m-%d %H:%M")
