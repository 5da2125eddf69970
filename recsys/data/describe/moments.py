"""Which columns of an unknown log contain times, and in which format."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from recsys.data.describe.columns import Column, share
from recsys.data.describe.names import OF_IDS, OF_OTHER_TIMES, OF_TIMES, known_afterwards, says
from recsys.data.settings import MomentSettings
from recsys.data.sources.times import ISO, whole_times

EARLIEST, LATEST = "1990-01-01", "2100-01-01"
SECONDS_1995, SECONDS_2036 = 788_918_400, 2_082_758_400
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DIGITS = {14: "%Y%m%d%H%M%S", 12: "%Y%m%d%H%M", 10: "%Y%m%d%H"}  # with 8 digits: either of
OF_EIGHT = ("%Y%m%d", "%y%m%d%H")
MONTH_FIRST, DAY_FIRST = "%m/%d/%Y", "%d/%m/%Y"
CLOCKS = (" %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", "")
FORMATS = [
    *(day + clock for clock in CLOCKS for day in (MONTH_FIRST, DAY_FIRST)),
    *(day + clock for clock in CLOCKS for day in ("%m-%d-%Y", "%d-%m-%Y")),
    *("%d.%m.%Y" + clock for clock in CLOCKS),
    *("%Y/%m/%d" + clock for clock in CLOCKS),
    "%d/%b/%Y:%H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
    "%a %b %d %H:%M:%S %z %Y",
]
READABLE = 0.99  # share of the known values


@dataclass(frozen=True)
class Moment:
    """A column of times: how to read it, its sampled times in ms, and notes for the user.

    ``likely`` is larger the more plausible it is as the event's time.
    """

    column: Column
    settings: MomentSettings
    times: pl.Series
    likely: float
    notes: list[str] = field(default_factory=list)

    @property
    def reading(self) -> str:
        """A description of how it is read."""
        form = self.settings.format
        return f"unit {self.settings.unit}" + (f", {form}" if form else "")


def find_moments(columns: Sequence[Column]) -> list[Moment]:
    """The columns with times, the likeliest event time first."""
    found = [moment for column in columns if (moment := _moment(column)) is not None]
    return sorted(found, key=lambda moment: -moment.likely)


def _moment(column: Column) -> Moment | None:
    if column.kind in ("list", "nested", "empty", "boolean"):
        return None
    named = says(column.name, OF_TIMES)
    if says(column.name, OF_IDS) and column.kind != "time":
        return None
    notes: list[str] = []
    if column.kind == "time":
        aware = getattr(column.dtype, "time_zone", None) is not None
        settings = MomentSettings(column=column.name, unit="datetime")
        notes += [] if aware else ["has no time zone: taken as UTC; set zone if it is local time"]
    elif column.kind in ("whole", "number"):
        settings = _of_numbers(column, named, notes)
    else:
        settings = _of_texts(column, notes)
    if settings is None:
        return None
    raw = column.values
    if settings.unit == "datetime" and raw.dtype == pl.Float64:
        raw = raw.cast(pl.Int64)
    times = whole_times(raw, settings)
    if times.count() < READABLE * raw.count():
        return None
    return Moment(column, settings, times, _likely(column, times, named), notes)


def _likely(column: Column, times: pl.Series, named: bool) -> float:
    known = times.drop_nulls()
    likely = 3.0 * named - 4.0 * says(column.name, OF_OTHER_TIMES)
    likely -= 5.0 * (column.missing > 0.01)
    likely += 2.0 * bool((known % 86_400_000 != 0).any())
    likely += 1.0 * (share(known.diff().drop_nulls() >= 0) > 0.99)
    return likely + min(known.n_unique(), 1000) / 1000


def _of_numbers(column: Column, named: bool, notes: list[str]) -> MomentSettings | None:
    known = column.values.drop_nulls()
    low, high = float(known.quantile(0.01) or 0), float(known.quantile(0.99) or 0)
    if column.kind == "whole":
        text = known.cast(pl.Int64, strict=False).cast(pl.String)
        lengths = text.str.len_chars().unique().to_list()
        formats = []
        if len(lengths) == 1:
            formats = OF_EIGHT if lengths[0] == 8 else [DIGITS.get(int(lengths[0] or 0), "")]
        for form in formats:
            settings = MomentSettings(column=column.name, unit="datetime", format=form)
            if form and _readable(text.unique(), settings):
                notes.append("has no time zone: taken as UTC; set zone if it is local time")
                return settings
    for unit, factor in PER_SECOND.items():
        if SECONDS_1995 * factor <= low <= high <= SECONDS_2036 * factor:
            likely_id = not named and column.kind == "whole" and high - low > 5e7 * factor
            return None if likely_id else MomentSettings(column=column.name, unit=unit)  # type: ignore[arg-type]
    clock = named and not says(column.name, ("day", "hour", "date", "at", "event", "since"))
    clock = clock and not known_afterwards(column.name)
    if clock and 0 <= low < high and column.distinct > 100:
        notes.append(
            "counts from an unknown start, perhaps in seconds: read as seconds since 1970; only "
            "differences are right"
        )
        return MomentSettings(column=column.name, unit="s", earliest="1970-01-01")
    return None


def _readable(text: pl.Series, settings: MomentSettings) -> bool:
    """Whether the times can be read in this format, with plausible years."""
    form = settings.format or ""
    if ("%H" in form or "%I" in form) and "%M" not in form:
        text, form = text + ":00", form + ":%M"
    times = text.str.to_datetime(form, strict=False, time_unit="ms")
    years = times.drop_nulls().dt.year()
    return len(years) >= READABLE * len(text) and bool(years.is_between(1995, 2035).all())


def _of_texts(column: Column, notes: list[str]) -> MomentSettings | None:
    known = column.values.drop_nulls().str.strip_chars().unique()
    parts = known.str.extract_groups(ISO).struct.unnest()
    if parts["date"].count() >= READABLE * len(known):
        without = parts["zone"].null_count()
        if without and parts["time"].count():
            notes.append("has no time zone: taken as UTC; set zone if it is local time")
        if 0 < without < len(known):
            notes.append("some texts have an offset and some do not")
        return MomentSettings(column=column.name, unit="datetime")
    if not known.str.contains(r"\d").all():
        return None
    fits = [
        settings
        for form in FORMATS
        if _readable(
            known, settings := MomentSettings(column=column.name, unit="datetime", format=form)
        )
    ]
    if not fits:
        return None
    if "%z" not in (fits[0].format or ""):
        notes.append("has no time zone: taken as UTC; set zone if it is local time")
    return fits[0] if len(fits) == 1 else _likelier(column, fits[:2], notes)


def _likelier(column: Column, fits: list[MomentSettings], notes: list[str]) -> MomentSettings:
    """Month or day first, where every text fits both: whichever leaves the log in better order."""
    order, spans = [], []
    for settings in fits:
        times = whole_times(column.values, settings)
        known = times.drop_nulls()
        order.append(share(known.diff().drop_nulls() >= 0))
        spans.append((int(known.max()) - int(known.min())) / 86_400_000)  # type: ignore[arg-type]
    best = max((0, 1), key=lambda index: (round(order[index], 2), -spans[index]))
    first, example = column.values.drop_nulls()[0], fits[best].format
    notes.insert(
        0,
        f"AMBIGUOUS: {first!r} may be month or day first; read as {example!r}, which gives "
        f"{spans[best]:.0f} days, the other way {spans[1 - best]:.0f} days; check it",
    )
    return fits[best]
