"""How cold an example is: how often its rarest id had been seen before."""

from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.schema import Schema, window_parts

COLDNESS_EDGES = (1, 10, 100, 1000)  # rows; each is the first value of the next bin
COLDNESS_BINS = ("never seen", "1 to 9", "10 to 99", "100 to 999", "1000 or more")


def rows_seen(schema: Schema, windows_dir: Path) -> dict[str, pl.DataFrame]:
    """Per window, a frame with ``example_id`` and ``seen``: how many rows of earlier windows
    contain the example's rarest id, among features with one id per example.

    Empty without such features, or if the windows' rows are not in ``windows_dir``. Ids are counted
    by table row, so ids that share a row by hashing count as one.

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
