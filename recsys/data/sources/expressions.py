"""Row filters and derived columns: SQL expressions of the log's columns."""

import re
from collections.abc import Mapping

import polars as pl

from recsys.config import InputError

TEXT = re.compile(r"'[^']*'")
NO_FUNCTION = re.compile(r"unsupported function '(\w+)'")  # SQL knows "user" as one
OF_MANY_ROWS = re.compile(r"\b(OVER|SELECT)\b", re.IGNORECASE)


def with_expressions(
    frame: pl.DataFrame, columns: Mapping[str, str], condition: str | None, place: str
) -> pl.DataFrame:
    """``frame`` with the derived ``columns``, in their order, and without the rows for which
    ``condition`` is not true.

    Args:
        place: where the user finds the settings, for messages.

    Raises:
        InputError: an expression is not valid, or needs more than one row and so could see the
            future.
    """
    frame = with_derived(frame, columns, f"{place}.columns")
    if condition is None:
        return frame
    kept = _evaluated(frame, condition, f"{place}.filter")
    if kept.dtype not in (pl.Boolean, pl.Null):
        raise InputError(
            f"{place}.filter: {condition!r} gives {kept.dtype}, neither true nor false"
        )
    return frame.filter(kept.cast(pl.Boolean).fill_null(False))


def with_derived(frame: pl.DataFrame, columns: Mapping[str, str], place: str) -> pl.DataFrame:
    """``frame`` with the derived ``columns`` added; see :func:`with_expressions`."""
    for name, text in columns.items():
        frame = frame.with_columns(_evaluated(frame, text, f"{place}.{name}").alias(name))
    return frame


def _evaluated(frame: pl.DataFrame, text: str, place: str) -> pl.Series:
    many = f"{place}: {text!r} needs more than its own row; use only columns of that row"
    if OF_MANY_ROWS.search(TEXT.sub("", text)):
        raise InputError(many)
    try:
        try:
            if not pl.sql_expr(text).meta.is_row_separable():
                raise InputError(many)
        except pl.exceptions.ColumnNotFoundError:  # parsing IN (...) needs the frame
            pass
        query = f"SELECT ({text}) AS found FROM log"
        found = pl.SQLContext(log=frame).execute(query, eager=True)["found"]
    except pl.exceptions.PolarsError as error:
        if "GROUP BY" in str(error):
            raise InputError(many) from error
        hint = "; columns of CSV are text: CAST(x AS DOUBLE)" if "compare" in str(error) else ""
        word = NO_FUNCTION.search(str(error))
        if word is not None and word[1] in frame.columns:
            hint = f'; for the column of that name write "{word[1]}", with its quotes'
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{place}: {text!r}: {reason}{hint}") from error
    if len(found) != frame.height:
        raise InputError(many)
    return found
