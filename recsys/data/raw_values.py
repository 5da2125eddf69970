"""Missing values and times in a log."""

from datetime import datetime
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, model_validator

from recsys.config import Settings

NULL_VALUES = ("NA", "NaN", "nan", "NULL", "null", "\\N", "None", "-")


def _checked_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("no such time zone; give one such as UTC, Europe/Berlin or Asia/Shanghai")
    return name


def checked_time(text: str) -> str:
    """Return ``text`` if it is an ISO 8601 date or time, else raise ValueError, for pydantic."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expected a date or time like 2024-01-31") from None
    return text


class MomentSettings(Settings):
    """A column of times.

    Attributes:
        column: the log's column with the time.
        unit: s, ms, us or ns for numbers since 1970; datetime for dates and text.
        format: format of text, as in strptime; null: ISO 8601.
        zone: time zone of times without an offset, such as Asia/Shanghai; null: UTC.
        earliest: earlier rows are bad.
        latest: rows from this time on are bad.
    """

    column: str
    unit: Literal["s", "ms", "us", "ns", "datetime"]
    format: str | None = None
    zone: Annotated[str, AfterValidator(_checked_zone)] | None = None
    earliest: Annotated[str, AfterValidator(checked_time)] = "1990-01-01"
    latest: Annotated[str, AfterValidator(checked_time)] = "2100-01-01"

    @model_validator(mode="after")
    def _text_has_a_format(self) -> "MomentSettings":
        if self.unit != "datetime":
            given = [name for name in ("format", "zone") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} needs unit: datetime; numbers count from 1970 in UTC")
        return self
