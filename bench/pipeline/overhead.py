"""What Prefect, DVC and MLflow add to a pipeline run: its time less that inside the stages' tasks.

    python -m bench.pipeline.overhead --ways none temporary server

The ways differ in Prefect's server: of the run itself, as where none is set; one that is there
already; none, which shows the run to nobody. A small project of its own for each; what is added
hardly depends on the rows, so of a longer run it is the same seconds. Prints, a way: seconds of
wall time and of the processor, of all and of what is added.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.faults.project import FEWER_ROWS, ROWS_LINE, SETTINGS
from tests.support import prefect_server
from tests.support.ports import free_port
from tests.support.projects import copy_project

WAYS = ("none", "temporary", "server")
CHILD = """
import json, sys, time
from argparse import Namespace
from functools import wraps

inside = 0.0


def timed(work):
    @wraps(work)
    def do(*arguments):
        global inside
        began = time.monotonic()
        try:
            return work(*arguments)
        finally:
            inside += time.monotonic() - began

    return do


from flows.run import run
import prefect
from flows.pipeline import STAGES

for stage in STAGES:
    for one in vars(sys.modules[stage.fn.__module__]).values():
        if isinstance(one, prefect.Task):
            one.fn = timed(one.fn)
run(Namespace(overrides=json.loads(sys.argv[1])))
print(inside)
"""


def measure(way: str) -> dict[str, float]:
    """One run of the pipeline in a project of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    if way == "none":
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{free_port()}/api"
    elif way == "server":
        environment["PREFECT_API_URL"] = prefect_server.api_url()
    overrides = list(SETTINGS.items())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "project"
        folder.mkdir()
        description = copy_project(folder) / "params/datasets/synthetic.yaml"
        description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
        environment |= {"PYTHONPATH": str(folder), "PREFECT_HOME": f"{made}/home"}
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        result = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(overrides)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise SystemExit(result.stderr[-4000:])
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "wall_s": wall,
        "added_s": wall - float(result.stdout.splitlines()[-1]),
        "processor_s": used,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    for way in parser.parse_args().ways:
        print(json.dumps({"way": way, **measure(way)}), flush=True)


if __name__ == "__main__":
    main()
