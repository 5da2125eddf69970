"""A log's files are Prefect tasks where several are read at once: on threads, tracked or not, and
on a cluster; the bytes are those of one process, and a store that does not answer is asked again.
"""

import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from flows.command_line import STATUS_OF_A_MISTAKE, exit_status, run_stage_flow
from flows.ingest import ingest
from recsys.data.sources.share_reading import ShareReader
from recsys.data.sources.shares import Share
from recsys.files import UnreachableError
from tests.support.files import contents
from tests.support.ports import free_port
from tests.support.prefect_server import shared_server

ROOT = Path(__file__).resolve().parents[2]
FILES, ROWS, WAIT_S = 6, 200, 60


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings and a log of six files, some of its rows bad."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    section = {
        "files": ["logs/day-*.csv"],
        "file_format": "csv",
        "time": {"column": "ts", "unit": "s"},
        "label": "y",
        "categorical": [{"column": "ad", "table_rows": "auto"}],
    }
    described = yaml.safe_dump({"format": "table", "table": section})
    (tmp_path / "params/datasets/log.yaml").write_text(described)
    (tmp_path / "logs").mkdir()
    for index in range(FILES):
        rows = pl.int_range(ROWS, eager=True) + index * ROWS
        frame = pl.DataFrame(
            {
                "ts": 1_704_067_200 + rows * 7919 % (3 * 86_400),
                "y": pl.Series([2 if one == 5 else one % 3 // 2 for one in rows]),
                "ad": rows * 17 % (23 + index),
            }
        )
        frame.write_csv(tmp_path / f"logs/day-{index}.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(**changes: str) -> int:
    overrides = {"data.dataset": "log", "data.root": "."}
    overrides |= {f"data.{name}": value for name, value in changes.items()}
    return exit_status(lambda: run_stage_flow(ingest, Namespace(overrides=overrides.items())))


def _cluster(runner: str) -> Any:
    """A parameter that is skipped where the runner's package is not installed."""
    missing = find_spec(f"prefect_{runner}") is None
    return pytest.param(
        runner, marks=pytest.mark.skipif(missing, reason=f"needs pip install 'towerflow[{runner}]'")
    )


def test_threads_without_a_server_give_the_bytes_of_one_process(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    expected = contents(project / "data/windows")
    capsys.readouterr()
    assert run(parallel_tasks="2") == 0
    assert contents(project / "data/windows") == expected
    read = [line for line in capsys.readouterr().err.splitlines() if line.startswith("read: ")]
    assert len(read) == 1 and read[0].startswith(f"read: {FILES * ROWS:,} rows in ")
    assert not (project / ".work/ingest").exists()


@pytest.mark.parametrize("runner", ["threads", _cluster("dask"), _cluster("ray")])
def test_each_part_of_a_log_is_a_task_and_the_bytes_are_those_of_one_process(
    project: Path,
    runner: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run() == 0
    expected = contents(project / "data/windows")
    capfd.readouterr()
    with shared_server(), caplog.at_level("INFO", "prefect.task_runs"):
        assert run(parallel_tasks="2", runner=runner) == 0
    assert contents(project / "data/windows") == expected
    ended = [
        f"Task run '{record.task_run_name}' - {record.getMessage()}"  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name == "prefect.task_runs" and hasattr(record, "task_run_name")
    ]
    told = "\n".join([*ended, *capfd.readouterr()])  # a cluster's workers are other processes
    for index in range(FILES):
        assert f"Task run 'read day-{index}.csv' - Finished in state Completed()" in told


def test_a_running_cluster_that_the_environment_names_does_the_work(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prefect_dask", reason="needs pip install 'towerflow[dask]'")
    from dask import config
    from distributed import Client

    assert run() == 0
    expected = contents(project / "data/windows")
    address = f"tcp://127.0.0.1:{free_port()}"
    dask = [sys.executable, "-m", "dask"]
    commands = [
        [*dask, "scheduler", "--port", address.rpartition(":")[2], "--no-dashboard"],
        [*dask, "worker", address, "--nthreads", "1", "--no-dashboard"],
    ]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = project / "cluster.log"
    with ExitStack() as processes, log.open("w") as told, shared_server():
        for command in commands:
            started = subprocess.Popen(command, cwd=project, env=own, stdout=told, stderr=told)
            processes.enter_context(started)
            processes.callback(started.kill)
        with Client(address, timeout=WAIT_S) as client, config.set({"scheduler-address": address}):
            client.wait_for_workers(1, timeout=WAIT_S)
            assert run(parallel_tasks="3", runner="dask") == 0
    assert contents(project / "data/windows") == expected
    assert log.read_text().count("Finished in state Completed()") == FILES


def test_a_store_that_does_not_answer_is_asked_again_for_that_part_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = ShareReader.read, Counter[str]()

    def unreachable_once(self: ShareReader, share: Share) -> int:
        asked[share.name] += 1
        if share.name == "day-2.csv" and asked[share.name] == 1:
            raise UnreachableError("the store does not answer")
        return read(self, share)

    monkeypatch.setattr(ShareReader, "read", unreachable_once)
    settings = project / "params/prefect.yaml"
    settings.write_text(re.sub(r"retry_seconds: \S+", "retry_seconds: 0.1", settings.read_text()))
    with shared_server():
        assert run(parallel_tasks="2") == 0
    assert asked.pop("day-2.csv") == 2
    assert set(asked.values()) == {1}


@pytest.mark.parametrize("tracked", [False, True])
def test_a_part_that_is_wrong_is_one_line_and_leaves_nothing(
    project: Path, tracked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with (project / "logs/day-4.csv").open("a") as file:
        file.write("1,2\n")
    with shared_server() if tracked else nullcontext():
        assert run(parallel_tasks="2") == STATUS_OF_A_MISTAKE
    lines = capsys.readouterr().err.splitlines()
    [error] = [line for line in lines if line.startswith("error: ")]
    assert error.endswith("day-4.csv: line 202 has 2 of 3 fields")
    assert not any("Traceback" in line for line in lines)
    assert not (project / "data/windows").exists() and not (project / ".work/ingest").exists()
