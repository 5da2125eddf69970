"""Settings of exports and of the server."""

from typing import Literal

from pydantic import Field, PositiveInt

from recsys.config import Settings

Precision = Literal["fp32", "fp16", "int8"]


class ExportSettings(Settings):
    """The contents of a student's export.

    Attributes:
        tables: how embeddings are stored; int8 has a scale per row.
        calibration: a monotone map per domain and task from the network's output to a probability.
            platt: two numbers; isotonic: steps; off: none; auto: the map that would have lowered
            the log loss most on these windows, each predicted from the windows before it, or none
            if the gain is below two standard errors.
        calibration_windows: windows before the last one that the map is fitted on; the last one
            reports it.
        isotonic_rows: auto considers isotonic steps only with at least this many labelled rows.
    """

    tables: Precision = "fp32"
    calibration: Literal["auto", "platt", "isotonic", "off"] = "auto"
    calibration_windows: PositiveInt = 3
    isotonic_rows: PositiveInt = 100_000


class ServeSettings(Settings):
    """The server of ``towerflow serve``.

    Attributes:
        host: address to listen on; 127.0.0.1 is only this machine, 0.0.0.0 lets other machines in.
        port: port to listen on; 0: a free one.
        largest_body_mb: larger requests are refused.
        largest_batch: most rows or candidates per request.
        unknown_columns: refuse: a column that the model does not read is an error; ignore: it is
            ignored.
        threads: threads of the network's session, per request.
        poll_seconds: how often to look for a new champion or export.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    largest_body_mb: float = Field(default=8.0, gt=0)
    largest_batch: PositiveInt = 4096
    unknown_columns: Literal["refuse", "ignore"] = "refuse"
    threads: PositiveInt = 1
    poll_seconds: float = Field(default=5.0, gt=0)
