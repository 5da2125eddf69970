"""Settings of what is exported and of the server."""

from typing import Literal

from pydantic import Field, PositiveInt

from recsys.config import Settings

Precision = Literal["fp32", "fp16", "int8"]


class ExportSettings(Settings):
    """What a student's export holds.

    ``tables``: how embeddings are stored; int8 has a scale per row. ``calibration``: a monotone map
    per domain and task from what the network says to a probability, fitted on the
    ``calibration_windows`` before the last window, which reports it: ``platt`` (two numbers),
    ``isotonic`` (steps), ``off``, or ``auto``: the map (isotonic from ``isotonic_rows`` labelled
    rows on) that would have lowered the log loss most on these windows, each predicted by the
    windows before it; none unless by more than two standard errors.
    """

    tables: Precision = "fp32"
    calibration: Literal["auto", "platt", "isotonic", "off"] = "auto"
    calibration_windows: PositiveInt = 3
    isotonic_rows: PositiveInt = 100_000


class ServeSettings(Settings):
    """The server of ``towerflow serve``.

    ``host``: loopback; 0.0.0.0 lets other machines in. ``largest_body_mb`` and ``largest_batch``
    (rows or candidates) bound a request. ``unknown_columns``: ``refuse`` names a column that the
    model does not read, ``ignore`` passes over it. ``threads``: of the network's session, per
    request. ``poll_seconds``: how often a new champion or export is looked for.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    largest_body_mb: float = Field(default=8.0, gt=0)
    largest_batch: PositiveInt = 4096
    unknown_columns: Literal["refuse", "ignore"] = "refuse"
    threads: PositiveInt = 1
    poll_seconds: float = Field(default=5.0, gt=0)
