"""What the tools around the work cost: the time of a pipeline run less that inside its stages'
tasks, and where it goes.

    python -m bench.tools.overhead --write                       # as `make run`, in a new clone
    python -m bench.tools.overhead --small --ways temporary standing away

A run of its own per way, in a clone of the last commit: with a temporary Prefect server, as where
none is set; with one that is there already; with one that does not answer, so that nobody sees the
run. ``--small`` takes a log and models of a few seconds; what is added hardly depends on them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.faults.project import FEWER_ROWS, ROWS_LINE, SETTINGS
from bench.shared.report import machine_lines, print_report
from bench.tools.timeline import IMPORTS, RECORDS
from tasks.overrides import apply_overrides
from tests.support import prefect_server
from tests.support.ports import free_port
from tests.support.projects import ROOT

REPORT = Path("docs/benchmarks/overhead.md")
WAYS = {
    "temporary": "with a Prefect server of its own, as where none is set",
    "standing": "with a Prefect server that is there already",
    "away": "with a Prefect server that does not answer",
}
START, END = "Python starts", "processes end"
ABOUT = """\
*Added* is the wall time of the command less that inside the tasks of its stages. Each part is
without the parts inside it. What is imported inside a task counts as work; the second table shows
it. Processor seconds of a part are the command's own, those of a task of all that it starts too."""

LIMIT = """\
## What stays

Nearly all that is added is a fixed number of seconds, so its share falls as logs grow. The default
log takes 190 s on two idle cores: 5.3 % are added with a standing server, 7.9 % with one of its own
on a new database. The aim is 5 %, which runs of 200 and 300 s meet. In processor seconds, measured
one by one:

| part | processor seconds |
|---|---:|
| imports before the first stage ([imports](imports.md)); 0.9 of it Prefect | 4.3 |
| import of Prefect's server module, to hand it the server that is running | 1.3 |
| start of Prefect's server, beside these imports: with a new database | 8.2 |
| the same with a database that is there | 3.8 |
| nine flow runs and 24 task runs: in the command | 0.7 |
| the same in the server | 1.5 |

Three waits of Prefect are gone, which cost no processor time:

- A new flow run inside another one met a write of the one before. SQLite refuses a transaction that
  has read before somebody else wrote; the server answers 503, and the client waited 1.8 s; seven
  of eight flow runs did. The server that a run starts now asks it to come again after 0.1 s. A
  server of your own with SQLite still makes it wait; PostgreSQL has no such refusal.
- At its end each flow run waited for the thread of its heartbeats, on average 0.85 s. The outermost
  alone has them now.
- The temporary server started when the first flow was called; now it starts with the imports.

At the end Python looked through all objects for garbage: 1.5 to 2.5 processor seconds in each
command that imports torch. It no longer does."""


@dataclass(frozen=True)
class Run:
    """A pipeline run's seconds.

    Attributes:
        parts: wall seconds outside of tasks, by part, which add up to what is added, and the
            command's processor seconds.
        stages: by task: wall and processor seconds, and of the wall imports and records to MLflow.
        beside: processor seconds of the processes that work beside the run.
    """

    wall: float
    processor: float
    parts: dict[str, tuple[float, float]]
    stages: dict[str, tuple[float, float, float, float]]
    beside: dict[str, float]

    @property
    def added(self) -> float:
        """Wall seconds outside of the stages' tasks."""
        return sum(wall for wall, _ in self.parts.values())


def measure(way: str, is_small: bool) -> Run:
    """Run the pipeline once in a new clone.

    Raises:
        SystemExit: the run failed.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    if way == "standing":
        environment["PREFECT_API_URL"] = prefect_server.api_url()
    elif way == "away":
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{free_port()}/api"
    with tempfile.TemporaryDirectory() as made:
        folder, notes = Path(made) / "clone", Path(made) / "notes.json"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        if is_small:
            description = folder / "params/datasets/synthetic.yaml"
            description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
            with chdir(folder):
                apply_overrides(SETTINGS)
        environment |= {
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "PREFECT_HOME": f"{made}/prefect",
        }
        said = Path(made) / "output.txt"
        with said.open("w") as output:  # not a pipe, which the server of the ranks would keep open
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            result = subprocess.run(
                [sys.executable, "-m", "bench.tools.timeline", str(notes)],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                check=False,
            )
            ended, after = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        if result.returncode:
            raise SystemExit(said.read_text()[-4000:])
        found = json.loads(notes.read_text())
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _run(found, began, ended, used)


def _run(found: dict[str, Any], began: float, ended: float, processor: float) -> Run:
    parts = {START: (found["began"] - began, 0.0)}
    inside: dict[tuple[str, str], float] = {}
    for task, part, wall, used in found["own"]:
        if task:
            inside[task, part] = wall
        else:
            parts[part] = wall, used
    parts[END] = ended - found["ended"], 0.0
    stages = {
        task: (wall, used, inside.get((task, IMPORTS), 0.0), inside.get((task, RECORDS), 0.0))
        for task, (wall, used) in found["tasks"].items()
    }
    return Run(ended - began, processor, parts, stages, found["beside"])


def lines(way: str, run: Run) -> list[str]:
    """A run as Markdown."""
    shown = sorted(run.parts.items(), key=lambda part: -part[1][0])
    in_stages = sum(used for _, used, _, _ in run.stages.values())
    beside = "".join(f", {who} {seconds:.1f}" for who, seconds in run.beside.items())
    return [
        f"## A run {WAYS[way]}",
        "",
        f"{run.wall:.1f} s, of which {run.added:.1f} s are added: **{run.added / run.wall:.1%}**.",
        f"Processor seconds: the command {run.processor:.1f}, the stages {in_stages:.1f}{beside}.",
        "",
        "| added | seconds | part of the run | processor seconds |",
        "|---|---:|---:|---:|",
        *(
            f"| {part} | {wall:.2f} | {wall / run.wall:.1%} | {used:.2f} |"
            for part, (wall, used) in shown
        ),
        "",
        "| task of a stage | seconds | processor seconds | of the seconds: imports | records |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {task} | {wall:.1f} | {used:.1f} | {imports:.2f} | {records:.2f} |"
            for task, (wall, used, imports, records) in run.stages.items()
        ),
    ]


def main() -> None:
    """Measure each way, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["temporary"])
    parser.add_argument("--small", action="store_true", help="a run of half a minute")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT}")
    given = parser.parse_args()
    command = " ".join(["python -m bench.tools.overhead", *sys.argv[1:]])
    text = [*machine_lines("Overhead", command, {}), "", ABOUT]
    for way in given.ways:
        text += ["", *lines(way, measure(way, given.small))]
    text += ["", LIMIT]
    print_report("\n".join(text) + "\n", REPORT if given.write else None)


if __name__ == "__main__":
    main()
