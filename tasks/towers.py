"""Windows to a partition of the features into towers."""

from prefect import task

from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.towers.settings import TowersSettings
from recsys.training.settings import TrainSettings
from tasks.project import PARAMS, PARTITION, WINDOWS, replacing, require
from tasks.tracking import RunRecord, flatten, open_run
from tasks.versioning import output_version


@task(task_run_name="partition the features", tags=["training"])
def partition_features() -> None:
    """Train the probe model and write models/partition."""
    from recsys.towers.probe import learn_partition

    require(WINDOWS)
    settings = load_settings(PARAMS / "towers.yaml", TowersSettings).partition
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    run = RunRecord(
        name="partition",
        kind="partition",
        parameters=flatten(settings),
        data_version=output_version(WINDOWS),
        dataset=Schema.load(WINDOWS).dataset,
        description="Which features go into which tower, found by a probe on the first windows.",
    )
    with open_run(run):
        with replacing(PARTITION) as (output,):
            partition = learn_partition(WINDOWS, settings, train, output)
        run.metrics = {"towers": float(len(partition.towers))}
        run.artifacts = {str(PARTITION): "partition"}
