"""Settings of the augment stage."""

from typing import Literal

from pydantic import Field, field_validator

from recsys.config import Settings


class AugmentSettings(Settings):
    """How the teacher's scores are logged.

    ``batch_size`` is global (over all ranks). ``max_staleness_hours``: an example whose event time
    is further past the snapshot's high-water mark stays without a score; null scores every one.
    ``wait_hours``: how long after its event an example waits for its score, in the stream's time;
    then it trains on its hard label alone; null waits for every window's scores. ``segment_rows``:
    examples of one file of the log, what memory and a kill can cost. ``staleness_bins_hours``:
    borders of the report's histogram. ``parallel_tasks``: shares of the windows that Prefect scores
    at once, each in processes of its own; ``runner`` says where.
    """

    batch_size: int = Field(default=4096, ge=1)
    max_staleness_hours: float | None = Field(default=None, gt=0)
    wait_hours: float | None = Field(default=None, ge=0)
    segment_rows: int = Field(default=262_144, ge=1)
    staleness_bins_hours: list[float] = Field(default=[1, 2, 4, 8, 16, 24, 48, 96, 168])
    runner: Literal["threads", "dask", "ray"] = "threads"
    parallel_tasks: int = Field(default=1, ge=1)

    @field_validator("staleness_bins_hours")
    @classmethod
    def _rising(cls, borders: list[float]) -> list[float]:
        if not borders or borders[0] <= 0 or sorted(set(borders)) != borders:
            raise ValueError(
                "give at least one border; each must be above the one before it, the first above 0"
            )
        return borders
