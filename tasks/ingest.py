"""Raw logs to windows."""

from prefect import task

from recsys.config import load_settings
from recsys.data.ingest import IngestReport, ingest
from recsys.data.settings import DatasetSettings, DataSettings
from tasks.project import INGEST_WORK, ORACLE, PARAMS, WINDOWS, replacing
from tasks.shown import is_unreachable


@task(
    task_run_name="cut the log into windows",
    tags=["data"],
    retry_condition_fn=is_unreachable,
)
def ingest_windows() -> IngestReport:
    """Write data/windows, and data/oracle where the true probabilities are known."""
    settings = load_settings(PARAMS / "data.yaml", DataSettings)
    dataset = load_settings(PARAMS / "datasets" / f"{settings.dataset}.yaml", DatasetSettings)
    with replacing(WINDOWS, ORACLE) as (windows, oracle):
        return ingest(settings, dataset, windows, oracle, INGEST_WORK)
