"""Train a ranker on a table in ten lines.

    python -m examples.train_a_ranker

The table is made here; a log of your own is one `pl.read_parquet` away. Each window is predicted
before the model trains on it, so every printed number is an honest one. NE is normalised entropy:
below 1 is better than always predicting the mean.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from recsys.config import parse_settings
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.progress import RowProgress
from recsys.training.engine import Engine
from recsys.training.quiet import quiet_libraries
from recsys.training.settings import TrainSettings
from recsys.validation.progressive import DataView, predict_then_train

# What `towerflow describe` would write for this table
DATASET = """
format: table
table:
  files: [log.parquet]
  file_format: parquet
  time: {column: time, unit: ms}
  label: clicked
  dense: [price]
  categorical: [{column: user, table_rows: auto}, {column: ad, table_rows: auto}]
"""
DAY_MS = 86_400_000


def make_log(rows: int = 6_000, days: int = 4) -> pl.DataFrame:
    """A click log in which some ads are better than others, and cheap ones sell."""
    random = np.random.default_rng(1)
    ad, price = random.integers(0, 50, rows), random.lognormal(1.0, 1.0, rows)
    logit = -1.0 + 1.5 * (ad % 5 == 0) - 0.5 * np.log(price)
    return pl.DataFrame(
        {
            "time": np.sort(random.integers(0, days * DAY_MS, rows)) + 19_000 * DAY_MS,
            "user": random.integers(0, 300, rows),
            "ad": ad,
            "price": price,
            "clicked": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )


def main(folder: Path) -> list[float]:
    """Train in ``folder``; the NE of each window."""
    make_log().write_parquet(folder / "log.parquet")
    dataset = parse_settings(DATASET, "dataset", DatasetSettings)
    data = DataSettings(root=str(folder), window_hours=24.0)
    ingest(data, dataset, folder / "windows", folder / "oracle")

    reader = WindowReader(folder / "windows")
    ranker = build_ranker(reader.schema, ModelSettings(), seed=1, table_device="meta")
    engine = Engine(ranker, TrainSettings(world_size=1), seed=1)
    view = DataView(reader, batch_size=64)
    with RowProgress("ranker", 2 * view.predicted()) as progress:
        windows = predict_then_train(engine, engine.serving_loss, view, folder / "out", progress)
    for window in windows:
        print(f"{window['window']}: NE {window['ne']:.4f}, AUC {window['auc']:.4f}")
    return [window["ne"] for window in windows]


if __name__ == "__main__":
    with TemporaryDirectory() as temporary, quiet_libraries():
        main(Path(temporary))
