"""Offer the deployments pipeline/served and stream/served, and run them when asked or, the stream,
on its schedule."""

import argparse
from typing import cast

from flows.command_line import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options: params/ and prefect.yaml hold all settings."""


def run(options: argparse.Namespace) -> None:
    """Serve until stopped."""
    from prefect import serve
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment

    from flows.pipeline import pipeline
    from flows.stream import stream
    from tasks.stream_settings import load_stream_settings

    one_at_a_time = ConcurrencyLimitConfig(
        limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
    )
    schedule = load_stream_settings().schedule()
    deployments = [
        pipeline.to_deployment("served"),
        stream.to_deployment("served", concurrency_limit=one_at_a_time, **schedule),
    ]
    serve(*cast(list[RunnerDeployment], deployments))  # coroutines only inside a running loop


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
