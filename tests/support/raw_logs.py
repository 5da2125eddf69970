"""A raw log, and what ingest makes of it."""

from pathlib import Path
from typing import Any

import polars as pl

from recsys.data.ingest import IngestReport, ingest
from recsys.data.settings import DatasetSettings, DataSettings

LOG = pl.DataFrame(
    {
        "time": [1_704_070_800 + 600 * i for i in range(40)],
        "clicked": [i % 4 == 0 for i in range(40)],
        "user": [f"u{i % 5}" for i in range(40)],
        "price": [float(i) for i in range(40)],
        "device": [i % 3 for i in range(40)],
    }
).with_columns(pl.col("clicked").cast(pl.Int64))
SECTION: dict[str, Any] = {
    "files": ["log.csv"],
    "file_format": "csv",
    "time": {"column": "time", "unit": "s", "label_delay_s": 60},
    "label": "clicked",
    "group": "user",
    "domain": {"column": "device", "values": {"0": "phone", "1": "desk"}, "other": "other"},
    "dense": ["price"],
    "categorical": [{"column": "user", "table_rows": 50}],
}
# Of files whose rows are in no order, some of them bad
SHUFFLED_SECTION: dict[str, Any] = {
    "files": ["log-*"],
    "file_format": "csv",
    "time": {"column": "ts", "unit": "s"},
    "label": "y",
    "dense": ["price"],
    "categorical": [{"column": name, "table_rows": "auto"} for name in ("user", "ad")],
    "counters": [{"by": ["ad"], "bin_minutes": 60, "hours": [24]}],
}


def run(
    data: DataSettings, root: Path, name: str, section: dict[str, Any], **changes: Any
) -> IngestReport:
    dataset = DatasetSettings.model_validate({"format": name, name: section})
    settings = data.model_copy(update={"root": str(root), "dataset": name, **changes})
    return ingest(settings, dataset, root / "windows", root / "oracle")


def rows_of(root: Path) -> pl.DataFrame:
    return pl.read_parquet(root / "windows" / "*" / "part-*.parquet")
