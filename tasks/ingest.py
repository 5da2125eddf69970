"""Raw logs to windows."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

from prefect import flow, task
from prefect.futures import as_completed as prefect_as_completed

from recsys.config import load_settings
from recsys.data.ingest import IngestReport, ingest
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.data.sources.files import URL, url_of
from recsys.data.sources.shares import Share, one_after_another
from recsys.files import write_json
from tasks.calling import is_tracked, retried, run_flow
from tasks.prefect_settings import PrefectSettings
from tasks.project import INGEST_WORK, ORACLE, PARAMS, WINDOWS, replacing
from tasks.runners import one_server, task_runner
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
    alone = settings.runner == "threads" and settings.parallel_tasks == 1
    read_shares = one_after_another if alone else partial(_read_shares, settings)
    with replacing(WINDOWS, ORACLE) as (windows, oracle):
        report = ingest(settings, dataset, windows, oracle, INGEST_WORK, read_shares)
        if remote:
            write_json(windows / REMOTE_FILE, remote)
        return report


@task(task_run_name="read {share.name}", tags=["data"], retry_condition_fn=is_unreachable)
def read_share(read: Callable[[Share], int], share: Share) -> int:
    """Leave the rows of a part of the log in .work/ingest; how many they are."""
    return read(share)


@flow(name="read the log", flow_run_name="read the log", validate_parameters=False)
def read_log(
    read: Callable[[Share], int], shares: Sequence[Share], done: Callable[[int], None]
) -> None:
    """Read the parts of the log at once, on the task runner that params/data.yaml names."""
    reading = retried(read_share, load_settings(PARAMS / "prefect.yaml", PrefectSettings))
    running = [reading.submit(read, share) for share in shares]
    for future in prefect_as_completed(running):
        done(future.result())


def _read_shares(
    settings: DataSettings,
    read: Callable[[Share], int],
    shares: Sequence[Share],
    done: Callable[[int], None],
) -> None:
    if is_tracked() or settings.runner != "threads":
        where = str(PARAMS / "data.yaml")
        runner = task_runner(settings.runner, settings.parallel_tasks, where)
        with one_server():
            run_flow(read_log.with_options(task_runner=runner), read, shares, done)
        return
    threads = ThreadPoolExecutor(settings.parallel_tasks)
    try:
        for future in as_completed([threads.submit(read, share) for share in shares]):
            done(future.result())
    finally:  # one that fails ends the others
        threads.shutdown(cancel_futures=True)


def remote_states(dataset: DatasetSettings, settings: DataSettings) -> dict[str, str]:
    """The state of each of the log's files behind a URL, by name; DVC does not see these.

    Raises:
        InputError: there is no such file, or the store does not answer.
    """
    described = dataset.table or dataset.criteo
    patterns = [] if described is None else [*described.files]
    if dataset.table is not None and dataset.table.candidates is not None:
        patterns += dataset.table.candidates.files
    urls = [url for url in (url_of(one, settings.root) for one in patterns) if URL in url]
    if not urls:
        return {}
    from recsys.data.sources.remote import states  # fsspec is seldom needed

    return dict(one for url in urls for one in states(url))
