"""What a column of a sample contains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from recsys.data.encoding import canonical_text, category_text
from recsys.data.settings import NULL_VALUES

Kind = Literal["whole", "number", "text", "boolean", "time", "list", "nested", "empty"]
LIST_SEPARATORS = ("|", ";", ",", " ")
LONG_TEXT = 40  # median characters above which text is prose
SHARE_OF_LISTS = 0.3  # least share of values with several elements in a column of lists as text


@dataclass(frozen=True)
class Column:
    """A column: its ``kind``, and its sampled ``values``, null where missing.

    ``values`` are Float64 for numbers, canonical texts for text and booleans, lists for lists, and
    unchanged for times. ``separator`` is that of lists written as text. ``distinct`` counts values
    in the whole log; ``missing`` is a share of the sample.
    """

    name: str
    dtype: pl.DataType
    kind: Kind
    values: pl.Series
    distinct: int
    missing: float
    separator: str | None = None

    @property
    def constant(self) -> bool:
        """Whether it carries no information: at most one value, and never missing."""
        return self.kind == "empty" or (self.distinct <= 1 and self.missing == 0)


def column_of(raw: pl.Series, distinct: int, null_values: Sequence[str] = NULL_VALUES) -> Column:
    """The contents of ``raw``, a sample of a column with ``distinct`` values."""
    kind, values, separator = _kind(raw, null_values)
    missing = values.null_count() / max(len(values), 1)
    return Column(raw.name, raw.dtype, kind, values, distinct, missing, separator)


def _kind(raw: pl.Series, null_values: Sequence[str]) -> tuple[Kind, pl.Series, str | None]:
    dtype = raw.dtype
    if raw.null_count() == len(raw):
        return "empty", raw, None
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        simple = inner.is_integer() or inner in (pl.String, pl.Boolean, pl.Null)
        return ("list" if simple else "nested"), raw, None
    if dtype.is_nested() or dtype == pl.Object or isinstance(dtype, pl.Time | pl.Duration):
        return "nested", raw, None
    if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
        return "time", raw, None
    if dtype.is_numeric():
        values = raw.cast(pl.Float64).fill_nan(None)
        return _number_kind(values), values, None
    text = canonical_text(category_text(raw), null_values)
    if text.null_count() == len(text):
        return "empty", raw, None
    if dtype == pl.Boolean:
        return "boolean", text, None
    known = text.drop_nulls().str.strip_chars()
    if set(known.unique().str.to_lowercase()[:3].to_list()) <= {"true", "false"}:
        return "boolean", text, None
    numbers = known.cast(pl.Float64, strict=False)
    # 007 is a code: as a number it would become 7
    if numbers.null_count() == 0 and not known.str.contains(r"^-?0\d").any():
        values = text.str.strip_chars().cast(pl.Float64, strict=False)
        return _number_kind(values), values, None
    separator = _separator(known)
    return ("list" if separator is not None else "text"), text, separator


def _number_kind(values: pl.Series) -> Kind:
    known = values.drop_nulls()
    return "whole" if ((known == known.floor()) & known.is_finite()).all() else "number"


def _separator(known: pl.Series) -> str | None:
    """The separator of list elements, if the texts are lists; else None."""
    if share(known.str.contains(r"^\s*\[.*\]\s*$")) > 0.95:
        return "," if known.str.contains(",", literal=True).any() else " "
    for separator in LIST_SEPARATORS:
        if share(known.str.contains(separator, literal=True)) < SHARE_OF_LISTS:
            continue
        parts = known.str.split(separator).explode().str.strip_chars()
        lengths = parts.str.len_chars()
        # Prose has words made of letters, lists have recurring elements
        again = parts.n_unique() < 0.5 * len(parts)
        like_ids = separator != " " or share(parts.str.contains(r"\d")) > 0.9
        like_ids = like_ids and not known.str.contains(r"^\d{1,4}[-/.:]\d{1,2}[-/.: ]").all()
        if again and like_ids and float(np.median(lengths.to_numpy())) <= 20:
            return separator
    return None


def share(flags: pl.Series) -> float:
    """The share of boolean ``flags`` that are true; missing ones count as false."""
    return int(flags.sum()) / max(len(flags), 1)


def is_prose(column: Column) -> bool:
    """Whether the texts are written for people: long, and hardly ever repeated."""
    length = column.values.drop_nulls().str.len_chars().median()
    return isinstance(length, float) and length > LONG_TEXT
