"""How cold an example is: how often the rarest of its ids had been seen before."""

from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.schema import Schema, window_parts

COLDNESS_EDGES = (1, 10, 100, 1000)  # rows, each the first of the next bin
COLDNESS_BINS = ("never seen", "1 to 9", "10 to 99", "100 to 999", "1000 or more")


def rows_seen(schema: Schema, windows_dir: Path) -> dict[str, pl.DataFrame]:
    """By window, ``example_id`` and ``seen``: in how many rows of the windows before the rarest of
    the example's ids had been, of the features that have one id an example.

    Empty without such features, or where the windows' rows are not in ``windows_dir``. A table's
    rows are counted: ids that share one by hashing are one id.

    Raises:
        InputError: as :func:`recsys.data.schema.window_parts`.
    """
    features = [one for one in schema.categorical if one.kind == "id"]
    counts = {one.name: np.zeros(one.num_embeddings, dtype=np.int64) for one in features}
    found = {}
    for window in schema.windows:
        if not window.rows:
            continue
        if not counts or not (windows_dir / window.name).is_dir():
            return {}
        parts = window_parts(windows_dir, window)
        frame = pl.read_parquet(parts, columns=["example_id", *counts])
        ids = {name: frame[name].to_numpy() for name in counts}
        rarest = np.min([counts[name][own] for name, own in ids.items()], axis=0)
        found[window.name] = frame.select("example_id", seen=pl.lit(pl.Series(rarest)))
        for name, own in ids.items():
            counts[name] += np.bincount(own, minlength=len(counts[name]))
    return found
