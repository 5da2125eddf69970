"""Made logs of the shapes that people have, for what looks at an unknown log."""

from typing import Any

import numpy as np
import polars as pl

ROWS = 3_000
DAYS = 10
START_MS = 1_711_929_600_000  # 2024-04-01 00:00 UTC
DAY_MS = 86_400_000
BASE_RATE = 0.25


def made_log(seed: int = 0, rows: int = ROWS) -> pl.DataFrame:
    """``rows`` of ten days in order of time: ms, user_id, item_id, device, price, clicked."""
    random = np.random.default_rng(seed)
    item = (random.pareto(1.0, rows) * 5).astype(int) % 60
    lift = np.where(item % 3 == 0, 0.2, -0.1)
    return pl.DataFrame(
        {
            "ms": START_MS + np.sort(random.integers(0, DAYS * DAY_MS, rows)),
            "user_id": random.integers(1, 200, rows),
            "item_id": item + 1_000,
            "device": random.choice(["phone", "desktop", "tv"], rows, p=[0.6, 0.38, 0.02]),
            "price": random.lognormal(1.0, 1.0, rows).round(3),
            "clicked": (random.random(rows) < BASE_RATE + lift).astype(int),
        }
    )


def with_time(log: pl.DataFrame, name: str, form: str | None, zone: str = "") -> pl.DataFrame:
    """``log`` with times as text of a format in place of ms."""
    moment = pl.from_epoch("ms", time_unit="ms")
    return log.select(
        (moment.dt.strftime(form or "%Y-%m-%d %H:%M:%S") + zone).alias(name), pl.exclude("ms")
    )


def made_impressions(seed: int = 0, rows: int = 800) -> pl.DataFrame:
    """``rows`` of lists of five shown items of which one or none was clicked, with the reading time
    of what followed."""
    random = np.random.default_rng(seed)
    shown = [random.choice(80, 5, replace=False).tolist() for _ in range(rows)]
    clicked = [[min(one)] if random.random() < 0.8 else [] for one in shown]
    values: dict[str, Any] = {
        "impression_id": np.arange(rows) + 7_000,
        "impression_time": START_MS + np.sort(random.integers(0, DAYS * DAY_MS, rows)),
        "user_id": random.integers(1, 100, rows),
        "device_type": random.choice([1, 2], rows),
        "article_ids_inview": shown,
        "article_ids_clicked": clicked,
        "next_read_time": random.random(rows),
    }
    return pl.DataFrame(values).with_columns(pl.from_epoch("impression_time", time_unit="ms"))
