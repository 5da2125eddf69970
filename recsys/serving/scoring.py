"""Score whole files of raw rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import InputError
from recsys.files import in_one_line, partial_path, publish_file
from recsys.serving.predictor import Predictor

ROWS_AT_ONCE = 16_384
PREFIX = "probability"


def score_file(predictor: Predictor, source: Path, target: Path, keep: list[str]) -> int:
    """Predict every row of a Parquet file; returns the number of rows.

    Writes ``probability`` (for further tasks ``probability_<task>``) and the columns ``keep`` to
    ``target``, in the same row order and atomically; keeps 16,384 rows in memory.

    Raises:
        InputError: ``source`` is not a Parquet file, lacks a column, or contains a wrong value.
    """
    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source}: {in_one_line(error)}") from error
    names = file.schema_arrow.names
    lacking = next((name for name in keep if name not in names), None)
    if lacking is not None:
        raise InputError(f"{source}: has no column {lacking!r} to keep; it has {', '.join(names)}")
    read = [name for name in names if name in {*keep, *predictor.format.read_names}]
    columns = [
        PREFIX if place == 0 else f"{PREFIX}_{task}" for place, task in enumerate(predictor.tasks)
    ]
    kept = [file.schema_arrow.field(name) for name in keep]
    schema = pa.schema([*kept, *((name, pa.float64()) for name in columns)])
    partial, rows = partial_path(target), 0
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=read):
                given = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                found = predictor.predict_tasks(given)
                values = [np.asarray(found[task]) for task in predictor.tasks]
                whole = [*(batch.column(name) for name in keep), *map(pa.array, values)]
                writer.write_batch(pa.record_batch(whole, schema=schema))
                rows += batch.num_rows
    except InputError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{source}: {error}") from error
    publish_file(partial, target)
    return rows
