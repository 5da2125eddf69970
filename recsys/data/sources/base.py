"""What a source of examples gives to ingest."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from recsys.data.schema import MAIN_TASK, CategoricalFeature

BAD_SCHEMA = {"row": pl.Int64, "reason": pl.String, "content": pl.String}


@dataclass
class Chunk:
    """Examples in (event_time, example_id) order, and the rows that could not become examples.

    ``frame`` has the columns of a window's part, already encoded, and ``probability`` (float64, the
    true one) if the source knows it; a further task's have its name at their end (label_<task>,
    null where there is none). ``bad`` has the columns row, reason and content.
    """

    frame: pl.DataFrame
    bad: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=BAD_SCHEMA))


@dataclass
class Source:
    """Features, domains and a stream of chunks; no chunk starts before the one ahead of it ended.

    ``origin_ms`` is where windows start to be counted from; the epoch by default.
    """

    dense: list[str]
    categorical: list[CategoricalFeature]
    domains: list[str]
    chunks: Iterator[Chunk]
    planted_groups: dict[str, str] = field(default_factory=dict)
    origin_ms: int = 0
    expected_rows: int = 0
    tasks: list[str] = field(default_factory=lambda: [MAIN_TASK])
