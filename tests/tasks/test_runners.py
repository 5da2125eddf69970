"""A runner whose package is missing or too old is one clear line; a cluster is as large as what it
runs at once."""

import sys
from types import ModuleType

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from recsys.config import InputError
from tasks.runners import task_runner


@pytest.mark.parametrize(
    ("name", "module"),
    [("dask", "prefect_dask"), ("dask", "dask"), ("ray", "prefect_ray"), ("ray", "ray")],
)
def test_missing_package_names_the_extra_and_the_key(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        InputError, match=rf"key 'runner': {name} needs.*pip install 'towerflow\[{name}\]'"
    ):
        task_runner(name, 2, "params/augment.yaml")


def test_package_without_the_runner_is_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("prefect_ray", "ray"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    with pytest.raises(InputError, match=r"key 'runner': ray needs.*no attribute 'RayTaskRunner'"):
        task_runner("ray", 2, "params/augment.yaml")


def test_dask_has_one_worker_per_share_that_may_start_ranks() -> None:
    pytest.importorskip("prefect_dask", reason="needs pip install 'towerflow[dask]'")
    from dask import config

    runner = task_runner("dask", 3, "params/augment.yaml")
    assert runner.cluster_kwargs == {"n_workers": 3, "threads_per_worker": 1}
    assert config.get("distributed.worker.daemon") is False


def test_ray_has_one_worker_per_share() -> None:
    pytest.importorskip("prefect_ray", reason="needs pip install 'towerflow[ray]'")
    assert task_runner("ray", 3, "params/augment.yaml").init_kwargs["num_cpus"] == 3


def test_threads_take_as_many_workers_as_shares() -> None:
    runner = task_runner("threads", 3, "params/augment.yaml")
    assert isinstance(runner, ThreadPoolTaskRunner)
    assert runner._max_workers == 3
