"""Raw values to model inputs: categories to table rows, numbers to signed logarithms."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pandas.core.util.hashing import hash_array

from recsys.config import InputError


def hash_to_rows(column: pl.Series, table_rows: int) -> pl.Series:
    """Each value's row of a table, int64 in [0, table_rows); 0 is kept for missing values.

    A list column gives lists. The hash depends on the value's text only, so it is the same in
    every run and on every machine.
    """
    if isinstance(column.dtype, pl.List):
        owners = pl.DataFrame({"row": np.arange(len(column)), "value": column})
        flat = owners.filter(pl.col("value").list.len() > 0).explode("value")
        flat = flat.with_columns(hash_to_rows(flat["value"], table_rows).alias("value"))
        lists = flat.group_by("row", maintain_order=True).agg("value")
        empty = pl.lit([], dtype=pl.List(pl.Int64))
        joined = owners.select("row").join(lists, on="row", how="left", maintain_order="left")
        return joined.select(pl.col("value").fill_null(empty))["value"].alias(column.name)
    distinct = column.cast(pl.String).unique().drop_nulls().sort()
    hashed = hash_text(distinct)
    rows = 1 + (hashed % np.uint64(table_rows - 1)).astype(np.int64)
    if len(distinct) == 0:
        return pl.Series(column.name, np.zeros(len(column), dtype=np.int64))
    return (
        column.cast(pl.String)
        .replace_strict(distinct, rows, default=0, return_dtype=pl.Int64)
        .alias(column.name)
    )


def hash_text(column: pl.Series) -> np.ndarray:
    """[N] uint64: pandas' hash of each text of a string column without nulls."""
    return np.asarray(hash_array(column.to_numpy().astype(object), categorize=False))


def lists(values: np.ndarray, lengths: np.ndarray) -> pl.Series:
    """Lists of ``lengths`` [B] from ``values`` [their sum] int64, one after the other."""
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


def dense_values(frame: pl.DataFrame, dense: Sequence[str]) -> NDArray[np.float32]:
    """[N, D] float32 of the columns ``dense``; missing values are NaN."""
    values = np.empty((frame.height, len(dense)), dtype=np.float32)  # a log may have none
    for index, name in enumerate(dense):
        values[:, index] = frame[name].cast(pl.Float32).to_numpy()
    return values


def milliseconds(text: str, key: str) -> int:
    """ISO date or time, taken as UTC, in ms since the epoch.

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
