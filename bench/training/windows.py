"""A windows folder as ingest writes it: 13 numbers, 26 ids with a power-law popularity, a label."""

from pathlib import Path

import numpy as np
import polars as pl

from bench.shared.power_law import power_law
from recsys.data.schema import CategoricalFeature, Schema, Window

TABLES = 26
NUMBERS = 13
CLICK_RATE = 0.2
WINDOW_MS = 3_600_000
FIRST_MS = 1_700_000_000_000
FEATURES = [f"c{position:02d}" for position in range(TABLES)]
VALUES = [f"n{position:02d}" for position in range(NUMBERS)]


def write_windows(
    folder: Path, table_rows: int, window_rows: int, windows: int, seed: int
) -> Schema:
    """Write ``windows`` windows of ``window_rows`` examples; labels are known at once, so a window
    is read alone."""
    draw = np.random.default_rng(seed)
    written = []
    for position in range(windows):
        start = FIRST_MS + position * WINDOW_MS
        window = Window(f"w{position:03d}", start, start + WINDOW_MS, window_rows, 0)
        (folder / window.name).mkdir(parents=True)
        frame = _examples(draw, table_rows, window, position * window_rows)
        frame.write_parquet(
            folder / window.name / "part-00000.parquet",
            compression="zstd",
            row_group_size=window_rows,
        )
        written.append(window)
    categorical = [CategoricalFeature(name, table_rows) for name in FEATURES]
    schema = Schema("bench", VALUES, categorical, ["all"], written, CLICK_RATE, {})
    schema.save(folder)
    return schema


def _examples(
    draw: np.random.Generator, table_rows: int, window: Window, first_id: int
) -> pl.DataFrame:
    times = np.sort(draw.integers(window.start_ms, window.end_ms, window.rows))
    columns: dict[str, np.ndarray] = {
        "example_id": np.arange(first_id, first_id + window.rows),
        "event_time": times,
        "label_time": times,
        "domain": np.zeros(window.rows, dtype=np.int32),
        "group": draw.integers(0, window.rows, window.rows),
        "label": (draw.random(window.rows) < CLICK_RATE).astype(np.float32),
    }
    columns |= {name: draw.normal(size=window.rows).astype(np.float32) for name in VALUES}
    columns |= {name: power_law(draw, table_rows, window.rows) for name in FEATURES}
    return pl.DataFrame(columns)
