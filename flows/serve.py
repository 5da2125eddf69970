"""Offer the deployments pipeline/served and stream/served, and run them when asked or, the stream,
on its schedule."""

from typing import cast

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment

from flows.command_line import apply_or_exit
from flows.pipeline import pipeline
from flows.stream import stream
from tasks.stream_settings import load_stream_settings

ONE_AT_A_TIME = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
)


def main() -> None:
    """Serve until stopped."""
    schedule = load_stream_settings().schedule()
    deployments = [
        pipeline.to_deployment("served"),
        stream.to_deployment("served", concurrency_limit=ONE_AT_A_TIME, **schedule),
    ]
    serve(*cast(list[RunnerDeployment], deployments))  # coroutines only where a loop is running


if __name__ == "__main__":
    apply_or_exit(main)
