"""Train the models that students have to beat."""

from prefect import task

from recsys.baselines.settings import BaselinesSettings
from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.evaluation.model_table import BASELINES as NAMES
from tasks.curves import curves_of
from tasks.project import BASELINES, PARAMS, WINDOWS, replacing, require
from tasks.tracking import RunRecord, flatten, open_run, record
from tasks.versioning import output_version


@task(task_run_name="train the baselines", tags=["training"])
def train_all_baselines() -> None:
    """Train each baseline on each domain's own rows and on all rows, into models/baselines."""
    from recsys.baselines.training import train_baselines

    require(WINDOWS)
    settings = load_settings(PARAMS / "baselines.yaml", BaselinesSettings)
    data_version, dataset = output_version(WINDOWS), Schema.load(WINDOWS).dataset
    stage = RunRecord(
        name="baselines",
        kind="baselines",
        parameters=flatten(settings),
        data_version=data_version,
        dataset=dataset,
        description="The models that students have to beat, with a run for each below.",
    )
    with open_run(stage):
        with replacing(BASELINES) as (output,):
            train_baselines(WINDOWS, settings, output)
        for name, path in NAMES.items():
            folder = BASELINES / path
            if folder.is_dir():
                record(
                    RunRecord(
                        name=name,
                        kind="baseline",
                        parameters=flatten(settings),
                        data_version=data_version,
                        dataset=dataset,
                        curves=curves_of(folder),
                        artifacts={str(folder / "metrics.json"): ""},
                        started_ms=stage.started_ms,
                    )
                )
