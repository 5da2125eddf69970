"""Raw logs to windows."""

from prefect import task

from recsys.config import load_settings
from recsys.data.ingest import IngestReport, ingest
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.files import URL, url_of
from recsys.files import write_json
from tasks.project import INGEST_WORK, ORACLE, PARAMS, WINDOWS, replacing
from tasks.shown import is_unreachable

REMOTE_FILE = "remote.json"


@task(
    task_run_name="cut the log into windows",
    tags=["data"],
    retry_condition_fn=is_unreachable,
)
def ingest_windows() -> IngestReport:
    """Write data/windows, and data/oracle where the true probabilities are known."""
    settings = load_settings(PARAMS / "data.yaml", DataSettings)
    dataset = load_settings(PARAMS / "datasets" / f"{settings.dataset}.yaml", DatasetSettings)
    remote = remote_states(dataset, settings)  # before reading: what arrives meanwhile is new
    with replacing(WINDOWS, ORACLE) as (windows, oracle):
        report = ingest(settings, dataset, windows, oracle, INGEST_WORK)
        if remote:
            write_json(windows / REMOTE_FILE, remote)
        return report


def remote_states(dataset: DatasetSettings, settings: DataSettings) -> dict[str, str]:
    """The state of each of the log's files behind a URL, by name; DVC does not see these.

    Raises:
        InputError: there is no such file, or the store does not answer.
    """
    described = dataset.table or dataset.criteo
    patterns = [] if described is None else described.files
    urls = [url for url in (url_of(one, settings.root) for one in patterns) if URL in url]
    if not urls:
        return {}
    from recsys.data.sources.remote import states  # fsspec is seldom needed

    return dict(one for url in urls for one in states(url))
