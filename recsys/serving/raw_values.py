"""Read single raw values like ingest's encoder: as text, number or time.

The results equal those of recsys/data/encoding.py and recsys/data/sources/times.py, one value at a
time and without polars; tests/recsys/serving/test_raw_encoder.py checks this.
"""

import math
import re
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import xxhash

from recsys.config import InputError
from recsys.data.raw_values import MomentSettings

BLANK = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"  # noqa: E501
SPELT_LOWER = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
WHOLE = re.compile(r"-?\d+\.0+")
NUMBER = re.compile(
    r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
WHOLE_FLOAT_BELOW = 2.0**63
ISO = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<time>\d{2}:\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r"\s?(?P<zone>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?)?"
)
PER_MILLISECOND = {"s": 1_000, "ms": 1, "us": 1 / 1_000, "ns": 1 / 1_000_000}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAIVE_EPOCH = datetime(1970, 1, 1)
MILLISECOND = timedelta(milliseconds=1)
NOT_READ, IMPLAUSIBLE = "missing or unparsable time", "implausible time"


def canonical(text: str | None, null_values: Collection[str]) -> str | None:
    """One spelling per value: ``1.0`` becomes ``1``, ``True`` becomes ``true``; None if it is
    missing."""
    if text is None or text in null_values or not text.strip(BLANK):
        return None
    spelt = SPELT_LOWER.get(text, text)
    if ".0" in spelt and WHOLE.fullmatch(spelt):
        spelt = spelt[: spelt.rindex(".")]
    if spelt == "-0":
        spelt = "0"
    return None if spelt in null_values else spelt


def text_of(value: Any, name: str) -> str | None:
    """The text of one value; whole floats are written like integers; None if it is missing.

    Raises:
        InputError: it has no text; ``name`` is its column.
    """
    kind = type(value)
    if kind is str or value is None:
        return value
    if kind is int:
        return str(value)
    if kind is float or isinstance(value, float | np.floating):
        return _float_text(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="microseconds")
    if isinstance(value, str | date | Decimal):
        return str(value)
    raise InputError(f"column {name!r} holds {kind.__name__}, which is not a category")


def _float_text(value: float | np.floating) -> str | None:
    if value != value:
        return None
    if abs(value) < WHOLE_FLOAT_BELOW and value == math.floor(value):
        return str(int(value))
    shortest = str(value) if isinstance(value, np.floating) else repr(value)
    digits, exponent, power = shortest.partition("e-")
    if not exponent:
        return shortest
    if int(power) > 5:
        return f"{digits}e-{int(power)}"
    sign, places = ("-" if digits[0] == "-" else ""), digits.lstrip("-").replace(".", "")
    return f"{sign}0.{'0' * (int(power) - 1)}{places}"


def number_of(value: Any, name: str) -> float:
    """One value as a float; NaN if it is missing.

    Raises:
        InputError: it is not a number.
    """
    if value is None:
        return math.nan
    if isinstance(value, str):
        if not NUMBER.fullmatch(value):
            raise InputError(f"column {name!r} holds {value!r}; expected numbers")
        return float(value)
    if isinstance(value, int | float | np.number | np.bool_ | Decimal):
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"column {name!r} holds a number that is too large") from None
    raise InputError(f"column {name!r} holds {type(value).__name__}; expected numbers")


def row_of(text: str | None, table_rows: int) -> int:
    """The table row of a canonical text, from its XXH3; 0 if it is missing."""
    if text is None:
        return 0
    hashed = xxhash.xxh3_64_intdigest(text.encode())
    return (((hashed >> 32) * (table_rows - 1)) >> 32) + (hashed != 0)


def milliseconds_of(value: Any, settings: MomentSettings) -> int:
    """One event time in ms since 1970.

    Raises:
        InputError: it is missing, cannot be read or is not plausible.
    """
    where = f"column {settings.column!r}"
    time = _of_number(value, settings) if settings.unit != "datetime" else _moment(value, settings)
    if time is None:
        raise InputError(f"{where}: {NOT_READ}, got {value!r}")
    if not _limit(settings.earliest) <= time < _limit(settings.latest):
        raise InputError(f"{where}: {IMPLAUSIBLE}, got {value!r}")
    return time


def _limit(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


def _of_number(value: Any, settings: MomentSettings) -> int | None:
    factor = PER_MILLISECOND[settings.unit]
    if isinstance(value, str):
        text = value.strip(BLANK)
        if not NUMBER.fullmatch(text):
            return None
        value = int(text) if INTEGER.fullmatch(text) else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            return None
        if value != math.floor(value):
            return math.floor(float(value) * factor)
    whole = int(value)
    return whole * int(factor) if factor >= 1 else whole // round(1 / factor)


def _moment(value: Any, settings: MomentSettings) -> int | None:
    if isinstance(value, datetime):
        return _in_utc(value, settings)
    if isinstance(value, date):
        return _in_utc(datetime(value.year, value.month, value.day), settings)
    if not isinstance(value, str):
        return None
    found = ISO.fullmatch(value.strip(BLANK))
    if found is None:
        return None
    try:
        day = f"{found['date']} {found['time'] or '00:00'}:{found['second'] or '00'}"
        moment = datetime.strptime(day, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None
    thousandths = int((found["fraction"] or "").ljust(3, "0")[:3])
    moment += timedelta(milliseconds=thousandths)
    zone = found["zone"]
    if zone is None:
        return _in_utc(moment, settings)
    digits = zone.replace(":", "")
    minutes = 0
    if zone not in ("Z", "z", "UTC"):
        minutes = 60 * int(digits[1:3]) + int(digits[3:5] or 0)
        minutes = -minutes if zone[0] == "-" else minutes
    return (moment - NAIVE_EPOCH) // MILLISECOND - minutes * 60_000


def _in_utc(moment: datetime, settings: MomentSettings) -> int | None:
    """A moment in ms since 1970; without a zone, it is taken to be in the settings' zone, or in
    UTC."""
    if moment.tzinfo is None:
        if settings.zone is None:
            return (moment - NAIVE_EPOCH) // MILLISECOND
        local = [moment.replace(tzinfo=ZoneInfo(settings.zone), fold=fold) for fold in (0, 1)]
        if local[0].utcoffset() != local[1].utcoffset():
            raise InputError(
                f"column {settings.column!r}: ambiguous or nonexistent local time in "
                f"{settings.zone}, got {moment}"
            )
        moment = local[0]
    return (moment - EPOCH) // MILLISECOND
