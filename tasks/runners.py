"""What runs mapped tasks: threads, or a Dask or Ray cluster, on this machine or a running one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from recsys.config import InputError


def task_runner(name: str, workers: int, settings_file: str) -> Any:
    """A Prefect task runner with this number of ``workers``: ``threads``, or processes of a
    ``dask`` or ``ray`` cluster on this machine. If the environment names a running cluster, by
    DASK_SCHEDULER_ADDRESS or RAY_ADDRESS, that one is used, with the workers that it has.

    Raises:
        InputError: its package is missing or has another version; the message names the key
            ``runner`` of ``settings_file``.
    """
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        return CLUSTER_RUNNERS[name](workers)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{settings_file}: key 'runner': {name} needs a package that is not installed "
            f"({error}); "
            f"pip install 'towerflow[{name}]', or set runner: threads"
        ) from error


@contextmanager
def one_server() -> Iterator[None]:
    """If no Prefect server is set, let a cluster's workers share this process's temporary server
    instead of starting one each."""
    if get_current_settings().api.url:
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer  # seconds: only where there is one

    server = SubprocessASGIServer()
    server.start()
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield


def _dask(workers: int) -> Any:
    """A Dask runner with one thread per worker. Dask's workers are daemons by default, which may
    not start the ranks that score."""
    config, runner = import_module("dask").config, import_module("prefect_dask").DaskTaskRunner
    address = config.get("scheduler-address", None)
    if address is not None:
        return runner(address=address)
    config.set({"distributed.worker.daemon": False})
    return runner(cluster_kwargs={"n_workers": workers, "threads_per_worker": 1})


def _ray(workers: int) -> Any:
    """A Ray runner. ``prefect_ray`` imports ray only when a flow starts; a missing package should
    be reported before that."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import_module("ray")
    runner, address = import_module("prefect_ray").RayTaskRunner, os.environ.get("RAY_ADDRESS")
    if address is not None:
        return runner(address=address)
    return runner(init_kwargs={"num_cpus": workers})


CLUSTER_RUNNERS: dict[str, Callable[[int], Any]] = {"dask": _dask, "ray": _ray}
