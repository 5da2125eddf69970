"""Turn raw values into model inputs: categories into table rows, numbers into signed logarithms."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import polars as pl
import polars_hash as plh
import pyarrow as pa
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.collisions import TableUse
from recsys.data.encoder_format import CROSSED
from recsys.data.settings import NULL_VALUES

WHOLE_FLOAT_BELOW = 2.0**63
SPELT_LOWER = ("True", "TRUE", "False", "FALSE")
# Texts that canonical_text changes: these, and any with a blank, a ".0" or a non-ASCII letter
RESPELT = (*NULL_VALUES, *SPELT_LOWER, "-0", "")


def hash_to_rows(
    column: pl.Series,
    table_rows: int,
    null_values: Sequence[str] = NULL_VALUES,
    use: TableUse | None = None,
) -> pl.Series:
    """Each value's table row, int64 in [0, table_rows); row 0 is reserved for missing values.

    A list column gives lists. The hash depends on the value's canonical text only
    (:func:`category_text`), so it is the same in every run and on every machine.

    Args:
        null_values: texts that mean a missing value, besides empty and blank ones.
        use: counter that is given the values and their rows.
    """
    return to_rows(
        column, null_values, lambda texts: table_rows_of(hash_text(texts), table_rows, use)
    )


def to_rows(
    column: pl.Series,
    null_values: Sequence[str],
    rows_of: Callable[[pl.Series], NDArray[np.int64]],
) -> pl.Series:
    """Each value's table row, int64; 0 where it is missing. A list column gives lists.

    Args:
        rows_of: returns the rows of canonical texts, 0 for null; called once.
    """
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        owners = pl.DataFrame({"row": np.arange(len(column)), "value": column})
        flat = owners.filter(pl.col("value").list.len() > 0).explode("value")
        rows = to_rows(flat["value"], null_values, rows_of)
        lists = (
            flat.with_columns(rows.alias("value")).group_by("row", maintain_order=True).agg("value")
        )
        empty = pl.lit([], dtype=pl.List(pl.Int64))
        joined = owners.select("row").join(lists, on="row", how="left", maintain_order="left")
        return joined.select(pl.col("value").fill_null(empty))["value"].alias(column.name)
    return pl.Series(column.name, rows_of(canonical_text(category_text(column), null_values)))


def table_rows_of(
    hashed: NDArray[np.uint64], table_rows: int, use: TableUse | None = None
) -> NDArray[np.int64]:
    """Table rows [N] for hashes of canonical texts; see :func:`hash_to_rows`."""
    # From the high bits (Lemire 2019), without division
    spread = ((hashed >> np.uint64(32)) * np.uint64(table_rows - 1)) >> np.uint64(32)
    rows = spread.view(np.int64) + (hashed != 0)
    if use is not None:
        use.add(hashed, rows)
    return rows


def counted_values(column: pl.Series, null_values: Sequence[str] = NULL_VALUES) -> dict[str, int]:
    """How often each canonical text occurs in ``column`` or its lists, without missing values."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        column = column.explode()
    counts = category_text(column).alias("text").value_counts(name="count")
    counts = counts.with_columns(canonical_text(counts["text"], null_values))
    counts = counts.drop_nulls("text").group_by("text").agg(pl.col("count").sum())
    return dict(zip(counts["text"], counts["count"], strict=True))


def value_hashes(column: pl.Series, null_values: Sequence[str] = NULL_VALUES) -> NDArray[np.uint64]:
    """The hash of each value of ``column`` or element of its lists, as in :func:`hash_to_rows`,
    without missing ones."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        column = column.explode()
    return hash_text(canonical_text(category_text(column), null_values).drop_nulls())


def key_hashes(
    frame: pl.DataFrame, columns: Sequence[str], null_values: Sequence[str] = NULL_VALUES
) -> NDArray[np.uint64]:
    """XXH3 [N] of the canonical texts of ``columns`` joined, with an empty text for a missing
    value."""
    texts = [
        canonical_text(category_text(frame[name]), null_values).fill_null("").alias(str(place))
        for place, name in enumerate(columns)
    ]
    return hash_text(pl.select(pl.concat_str(texts, separator=CROSSED).alias("key"))["key"])


def category_text(column: pl.Series) -> pl.Series:
    """The text of each value: whole floats are written like integers, NaN becomes null, bytes
    become text.

    Raises:
        InputError: the values have no text.
    """
    if column.dtype.is_float():
        value = pl.col(column.name)
        whole = (value == value.floor()) & (value.abs() < WHOLE_FLOAT_BELOW)
        text = (
            pl.when(whole)
            .then(value.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(value.fill_nan(None).cast(pl.String))
        )
        return column.to_frame().select(text.alias(column.name))[column.name]
    if column.dtype == pl.Binary:
        known = column.drop_nulls().unique()
        texts = pl.Series(column.name, [text_of(value) for value in known], dtype=pl.String)
        found = pl.DataFrame({"bytes": known, column.name: texts})
        joined = (
            column.alias("bytes")
            .to_frame()
            .join(found, on="bytes", how="left", maintain_order="left")
        )
        return joined[column.name]
    if isinstance(column.dtype, pl.Datetime):
        column = column.cast(pl.Datetime("us", column.dtype.time_zone))  # one text in every unit
    if column.dtype.is_nested() or column.dtype == pl.Object:
        raise InputError(f"column {column.name!r} holds {column.dtype}, which is not a category")
    return column.cast(pl.String)


def text_of(value: bytes) -> str:
    """UTF-8 bytes as text, others in hexadecimal."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def canonical_text(text: pl.Series, null_values: Sequence[str] = NULL_VALUES) -> pl.Series:
    """``text`` with one spelling per value: ``1.0`` becomes ``1``, ``True`` becomes ``true``; null
    where it is blank or in ``null_values``."""
    value = pl.col(text.name)
    plain = pl.when(value.is_in(list(SPELT_LOWER))).then(value.str.to_lowercase()).otherwise(value)
    if text.str.contains(".0", literal=True).any():  # few columns need the regular expressions
        whole = value.str.contains(r"^-?\d+\.0+$")
        plain = pl.when(whole).then(value.str.replace(r"\.0+$", "")).otherwise(plain)
    spelt = plain.replace("-0", "0")
    # The canonical spelling too, so that applying this twice changes nothing
    missing = (
        value.is_in(list(null_values))
        | spelt.is_in(list(null_values))
        | (value.str.strip_chars() == "")
    )
    spelt = pl.when(~missing).then(spelt)
    return text.to_frame().select(spelt.alias(text.name))[text.name]


def text_hash(name: str) -> pl.Expr:
    """XXH3 of the texts in the column ``name``, uint64; 0 for null."""
    return plh.col(name).nchash.xxh3_64().fill_null(0).alias(name)


def hash_text(column: pl.Series) -> NDArray[np.uint64]:
    """:func:`text_hash` [N] of a string column."""
    return column.to_frame().select(text_hash(column.name)).to_series().to_numpy()


def lists(values: np.ndarray, lengths: np.ndarray) -> pl.Series:
    """Lists with ``lengths`` [B], cut in order from the int64 ``values`` [sum of lengths]."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pl.Series(
        pl.from_arrow(pa.LargeListArray.from_arrays(offsets, pa.array(values, pa.int64())))
    )


def signed_log1p(name: str) -> pl.Expr:
    """sign(x) log(1 + |x|) of a numeric column, float32; missing, NaN and infinite values are
    null."""
    value = pl.col(name).cast(pl.Float64)
    finite = pl.when(value.is_finite()).then(value)
    return (finite.sign() * finite.abs().log1p()).cast(pl.Float32).alias(name)


def dense_values(
    frame: pl.DataFrame, dense: Sequence[str], order: Literal["C", "F"] = "C"
) -> NDArray[np.float32]:
    """The columns ``dense`` as [N, D] float32; missing values are NaN. ``order`` is the memory
    layout."""
    values = np.empty((frame.height, len(dense)), np.float32, order)  # there may be no columns
    for index, name in enumerate(dense):
        values[:, index] = frame[name].cast(pl.Float32).to_numpy()
    return values


def milliseconds(text: str, key: str) -> int:
    """Convert an ISO date or time, taken as UTC, to ms since the epoch.

    Raises:
        InputError: ``text`` is not one; the message names the setting ``key``.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"key {key!r}: expected a time like 2024-01-01T00:00:00, got {text!r}"
        ) from error
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
