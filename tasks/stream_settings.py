"""Settings of the stream."""

from typing import Any

from prefect.client.schemas.schedules import CronSchedule
from pydantic import Field, field_validator, model_validator

from recsys.config import Settings, load_settings
from tasks.project import PARAMS


class StreamSettings(Settings):
    """The stream: when it runs and what it publishes.

    Attributes:
        finished: true: the log's last window is complete, so it is processed too; false: it may
            still grow.
        windows_at_once: while catching up, publish after this many windows; null: only at the end.
        poll_seconds: seconds between two looks of ``--watch`` at the log.
        alias: alias of each student's newest registered model; null: none is registered.
        cron: schedule of the deployment, in cron syntax.
        interval_minutes: interval of the deployment's runs, instead of cron.
    """

    finished: bool = False
    windows_at_once: int | None = Field(default=None, ge=1)
    poll_seconds: float = Field(default=5.0, gt=0)
    alias: str | None = "stream"
    cron: str | None = None
    interval_minutes: float | None = Field(default=None, gt=0)

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, cron: str | None) -> str | None:
        try:
            return None if cron is None else CronSchedule(cron=cron).cron
        except ValueError:
            raise ValueError('expected five fields such as "*/30 * * * *"') from None

    @model_validator(mode="after")
    def _one_schedule(self) -> "StreamSettings":
        if self.cron is not None and self.interval_minutes is not None:
            raise ValueError("give cron or interval_minutes, not both")
        return self

    def schedule(self) -> dict[str, Any]:
        """The deployment's schedule as a Prefect keyword argument; empty if it only runs on
        request."""
        if self.interval_minutes is not None:
            return {"interval": 60.0 * self.interval_minutes}
        return {} if self.cron is None else {"cron": self.cron}


def load_stream_settings() -> StreamSettings:
    """params/stream.yaml.

    Raises:
        InputError: it is missing or wrong.
    """
    return load_settings(PARAMS / "stream.yaml", StreamSettings)
