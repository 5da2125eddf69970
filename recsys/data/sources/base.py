"""What a source of examples provides to ingest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from recsys.data.collisions import TableUse
from recsys.data.encoder import Encoder
from recsys.data.names import OWN
from recsys.data.schema import MAIN_TASK, CategoricalFeature

BAD_SCHEMA = {"row": pl.Int64, "file": pl.String, "reason": pl.String, "content": pl.String}
CONTENT_CHARACTERS = 80
ROW, EXAMPLE = f"{OWN}row", f"{OWN}example_id"
DOMAIN = f"{OWN}domain"
LABEL_TIME, LABEL = f"{OWN}label_time", f"{OWN}label"
OWN_WEIGHT = f"{OWN}weight"


@dataclass
class Chunk:
    """Examples in (event_time, example_id) order, and the rows that could not become examples.

    ``frame`` has the columns of a window's part, already encoded. A further task's columns end in
    its name (label_<task>, null where there is none). There is a column ``weight`` if the source is
    ``weighted``. ``truth`` has as many rows, with the true ``probability`` (float64; also of
    further tasks) if the source knows it. ``bad`` has the columns row, file, reason and content.

    ``read`` counts the rows of the log behind the chunk, ``dropped`` the rows left out by each
    named rule, and ``made`` the examples beyond one per row (negatives, elements of a list).
    ``candidates`` are in the columns of a part, without labels, and not later than the next chunk.
    """

    frame: pl.DataFrame
    bad: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=BAD_SCHEMA))
    truth: pl.DataFrame | None = None
    read: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    made: int = 0
    candidates: pl.DataFrame | None = None


@dataclass
class Source:
    """Features, domains and a stream of chunks; each chunk starts after the previous one has ended.

    ``origin_ms`` is the start of the first window's grid; the epoch by default. ``files`` are the
    log's files in reading order. Once all chunks have been read, ``uses`` say how values share
    table rows, and ``encoder`` returns an encoder for further raw rows; ``notes`` are lines for the
    user. ``rows_left`` counts rows of the log that were read and are not in a chunk yet.
    ``vocabularies`` names the categorical features with a vocabulary. ``negative_rates`` is the
    share of rows with label 0 that the log has kept, by domain; empty means all.
    ``has_candidates`` says whether chunks may hold candidates.
    """

    dense: list[str]
    categorical: list[CategoricalFeature]
    domains: list[str]
    chunks: Iterator[Chunk]
    encoder: Callable[[], Encoder]
    planted_groups: dict[str, str] = field(default_factory=dict)
    origin_ms: int = 0
    expected_rows: int = 0
    tasks: list[str] = field(default_factory=lambda: [MAIN_TASK])
    files: list[Path] = field(default_factory=list)
    uses: list[TableUse] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows_left: Callable[[], int] = lambda: 0
    vocabularies: list[str] = field(default_factory=list)
    negative_rates: list[float] = field(default_factory=list)
    weighted: bool = False
    has_candidates: bool = False
