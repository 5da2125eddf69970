"""Settings of Prefect."""

from pydantic import Field

from recsys.config import Settings


class PrefectSettings(Settings):
    """params/prefect.yaml: what a flow run does with its tasks, wherever a Prefect server is set.

    ``timeout_hours``: a task that takes longer is stopped; null: none is. ``retries``: how often a
    task is tried again where that can help, which is where another process is at work or a store
    does not answer; never for a mistake. ``retry_seconds``: the pause before the first retry, which
    doubles from one to the next, each with jitter. ``failure_block``: a notification block
    of the server, as type/name, that is told of each flow run that fails; null: nobody is.
    """

    timeout_hours: float | None = Field(default=None, gt=0)
    retries: int = Field(default=3, ge=0)
    retry_seconds: float = Field(default=2.0, gt=0)
    failure_block: str | None = Field(default=None, pattern=r"^[^/]+/[^/]+$")
