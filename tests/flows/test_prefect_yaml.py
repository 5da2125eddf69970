"""prefect.yaml offers the pipeline, each stage and the stream as they are, on the pool that README
names; a mistake in it would show only on a server."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint

from flows.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())[
    "deployments"
]
WAITS = ConcurrencyLimitConfig.model_validate({"limit": 1, "collision_strategy": "ENQUEUE"})


def flow_of(deployment: dict[str, Any]) -> str:
    return deployment["entrypoint"].rpartition(":")[2]


def test_the_pipeline_the_stream_and_every_stage_are_deployments_on_the_pool() -> None:
    names = [flow_of(one) for one in DEPLOYMENTS]
    assert names == ["pipeline", "stream", *(stage.name for stage in STAGES)]
    assert {one["name"] for one in DEPLOYMENTS} == {"local"}
    assert {one["work_pool"]["name"] for one in DEPLOYMENTS} == {"local"}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=flow_of)
def test_each_deployment_is_of_a_flow_that_is_there_and_runs_once_at_a_time(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert load_flow_from_entrypoint(deployment["entrypoint"]).name == flow_of(deployment)
    limit = ConcurrencyLimitConfig.model_validate(deployment["concurrency_limit"])
    assert limit == WAITS  # a stream that was cancelled would miss what came during the one before
    assert deployment["description"].endswith(".")


def test_the_stream_has_a_schedule_that_is_off_and_starts_when_the_log_has_grown() -> None:
    (stream,) = [one for one in DEPLOYMENTS if flow_of(one) == "stream"]
    (schedule,) = stream["schedules"]
    assert schedule.pop("active") is False
    assert IntervalSchedule.model_validate(schedule).interval.total_seconds() == 1800
    (trigger,) = stream["triggers"]
    found = DeploymentEventTrigger.model_validate(trigger)
    assert found.expect == {"log.grew"}
