"""The work pools of deploy/: Prefect takes the templates, and what they make of the values that
must be given runs the flow in the project's folder."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"docker": "docker", "kubernetes": "kubernetes", "slurm": "process"}
GIVEN = {
    "docker": {"project": "/srv/ads"},
    "kubernetes": {"project": "/srv/ads", "claim": "ads", "gpus": 2},
    "slurm": {"project": "/srv/ads", "partition": "gpu"},
}


def template(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"deploy/{name}.json").read_text())


@pytest.mark.parametrize("name", GIVEN)
def test_prefect_takes_the_template_and_its_form_asks_for_what_must_be_given(name: str) -> None:
    WorkPoolCreate(name=name, type=TYPES[name], base_job_template=template(name))
    form = template(name)["variables"]
    Draft202012Validator.check_schema(form)
    assert Draft202012Validator(form).is_valid(GIVEN[name])
    assert not Draft202012Validator(form).is_valid({})


def made(name: str) -> dict[str, Any]:
    """The job of a worker whose package need not be installed."""
    whole = template(name)
    values = {
        key: one["default"]
        for key, one in whole["variables"]["properties"].items()
        if "default" in one
    }
    return apply_values(whole["job_configuration"], values | GIVEN[name], remove_notset=True)


def test_a_container_sees_the_projects_folder_where_the_host_has_it() -> None:
    job = made("docker")
    assert job["volumes"] == ["/srv/ads:/srv/ads"]
    assert job["container_create_kwargs"]["working_dir"] == "/srv/ads"
    assert "{{" not in json.dumps(job)


def test_a_kubernetes_job_runs_once_on_the_claim_with_its_gpus() -> None:
    spec = made("kubernetes")["job_manifest"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert spec["backoffLimit"] == 0  # Prefect says whether to try again
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"] == "/srv/ads"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in spec["template"]["spec"]["volumes"]}


def test_slurm_runs_the_flow_through_a_process_worker() -> None:
    job = ProcessJobConfiguration.model_validate(made("slurm"))
    assert re.fullmatch(
        r"srun .*--partition=gpu .*--cpus-per-task=8 .* \.venv/bin/python -m prefect flow-run "
        r"execute",
        str(job.command),
    )
    assert job.working_dir == Path("/srv/ads")
