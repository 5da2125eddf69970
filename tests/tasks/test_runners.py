"""A runner whose package is not installed is one clear line."""

import sys

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from recsys.config import InputError
from tasks.runners import task_runner


@pytest.mark.parametrize(("name", "module"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_missing_package_names_the_extra_and_the_key(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"key 'runner': {name} needs.*pip install 'towerflow\[{name}\]'"):
        task_runner(name, 2, "params/augment.yaml")


def test_threads_take_as_many_workers_as_shares() -> None:
    runner = task_runner("threads", 3, "params/augment.yaml")
    assert isinstance(runner, ThreadPoolTaskRunner)
    assert runner._max_workers == 3
