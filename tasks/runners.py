"""Who runs mapped tasks: threads of this machine, or a Dask or Ray cluster."""

from importlib import import_module
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from recsys.config import InputError

CLUSTER_RUNNERS = {"dask": ("prefect_dask", "DaskTaskRunner"), "ray": ("prefect_ray", "RayTaskRunner")}


def task_runner(name: str, workers: int, settings_file: str) -> Any:
    """A Prefect task runner: ``threads`` (``workers`` of them), ``dask`` or ``ray``.

    Raises:
        InputError: its package is not installed; names the key ``runner`` of ``settings_file``.
    """
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    module, runner = CLUSTER_RUNNERS[name]
    try:
        return getattr(import_module(module), runner)()
    except ImportError as error:
        raise InputError(
            f"{settings_file}: key 'runner': {name} needs a package that is not installed ({error}); "
            f"pip install 'towerflow[{name}]', or set runner: threads"
        ) from error
