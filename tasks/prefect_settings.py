"""Settings of Prefect."""

from pydantic import Field

from recsys.config import Settings


class PrefectSettings(Settings):
    """How a flow run treats its tasks when a Prefect server is set.

    Attributes:
        timeout_hours: a task that takes longer is stopped; null: no limit.
        retries: how often a task is retried when another process held a lock or a store did not
            answer; never after a user's mistake.
        retry_seconds: pause before the first retry; it doubles for each further retry, with jitter.
        failure_block: the server's notification block, as type/name, that is told of each failed
            flow run; null: none.
    """

    timeout_hours: float | None = Field(default=None, gt=0)
    retries: int = Field(default=3, ge=0)
    retry_seconds: float = Field(default=2.0, gt=0)
    failure_block: str | None = Field(default=None, pattern=r"^[^/]+/[^/]+$")
