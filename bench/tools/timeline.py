"""A pipeline run that notes where its time goes: ``python -m bench.tools.timeline NOTES``, started
by :mod:`bench.tools.overhead` in a project's folder.

Nothing of the project is imported before the clock runs, and each function is timed from the moment
its module is loaded, so that the command imports what it would import alone, when it would.
"""

import importlib._bootstrap
import json
import sys
import threading
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

IMPORTS, ENGINE, SERVER = "imports", "Prefect: flow and task runs", "Prefect: wait for its server"
STATUS, COMMIT = "DVC: what has to run", "DVC: commit"
CODE, RECORDS, COURIER = "code of the stages", "MLflow: records to disk", "MLflow: last records"
REPORT, WORK, SELF = "the report printed", "work", "the command itself"
# Functions by module, each with the part of the time that it is counted to
PARTS = {
    "tasks.versioning": {
        "settled_stages": STATUS,
        "stale_stages": STATUS,
        "commit_stage": COMMIT,
        "write_code": CODE,
    },
    "tasks.tracking": {"record": RECORDS},
    "tasks.courier": {"_wait": COURIER},
    "tasks.calling": {"run_flow": ENGINE},
    "tasks.temporary_server": {"_answers": SERVER},
    "recsys.evaluation.printed": {"print_report": REPORT},
}
OF_NO_STAGE = "tasks.stages"
BESIDE = {"uvicorn": "Prefect's server", "tasks.courier": "MLflow's courier"}  # by a word of theirs


class Clock:
    """Seconds of the main thread by part, each without the parts inside it.

    Attributes:
        own: wall and processor seconds by (stage's task, part); no task outside of tasks.
        tasks: wall and processor seconds by task, with all processes that it starts.
        beside: processor seconds of the processes that work beside the run.
    """

    def __init__(self) -> None:
        self.own: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.tasks: dict[str, tuple[float, float]] = {}
        self.beside: dict[str, float] = {}
        self._task, self._part = "", SELF
        self._since = time.monotonic(), time.process_time()

    def timed(self, work: Callable[..., Any], part: str, task: str = "") -> Callable[..., Any]:
        """``work``, whose time is counted to ``part`` and, where it is a stage's, to ``task``."""

        @wraps(work)
        def do(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return work(*arguments, **named)
            before = self._task, self._part
            used, began = self._processor_seconds() if task else 0.0, time.monotonic()
            self._switch(task or self._task, part)
            try:
                return work(*arguments, **named)
            finally:
                self._switch(*before)
                if task:
                    spent = self._processor_seconds() - used
                    self.tasks[task] = (time.monotonic() - began, spent)
                elif part == COURIER:
                    self._processor_seconds()

        return do

    def _switch(self, task: str, part: str) -> None:
        now = time.monotonic(), time.process_time()
        spent = self.own[self._task, self._part]
        spent[0] += now[0] - self._since[0]
        spent[1] += now[1] - self._since[1]
        self._task, self._part, self._since = task, part, now

    def stop(self) -> None:
        """Count the time up to now."""
        self._switch("", SELF)

    def _processor_seconds(self) -> float:
        """Of this process and all below it, but those beside the run, which are noted."""
        import psutil

        this, spent = psutil.Process(), 0.0
        for process in (this, *this.children(recursive=True)):
            try:
                words = process.cmdline()
                seconds = sum(process.cpu_times()[:4])
            except psutil.Error:
                continue
            who = "" if process == this else next((BESIDE[w] for w in BESIDE if w in words), "")
            if who:
                self.beside[who] = seconds
            else:
                spent += seconds
        return spent


def _watch(clock: Clock) -> None:
    """Let ``clock`` count imports, and what PARTS names as soon as it is loaded."""
    bootstrap: Any = importlib._bootstrap
    find_and_load = clock.timed(bootstrap._find_and_load_unlocked, IMPORTS)

    def loaded(name: str, import_: Any) -> Any:
        module = find_and_load(name, import_)
        for function, part in PARTS.get(name, {}).items():
            setattr(module, function, clock.timed(getattr(module, function), part))
        if name == "flows.augment":  # its tasks run in threads, for which it waits
            shares = module.score_shares
            shares.fn = clock.timed(shares.fn, WORK, "score_shares")
        if name.startswith("tasks.") and name != OF_NO_STAGE:
            for value in vars(module).values():
                if type(value).__name__ == "Task" and value.fn.__module__ == name:
                    value.fn = clock.timed(value.fn, WORK, value.fn.__name__)
        return module

    bootstrap._find_and_load_unlocked = loaded


def main(notes: Path) -> None:
    """Run the pipeline; write its clock into ``notes``."""
    clock, began = Clock(), time.monotonic()
    _watch(clock)
    from flows.command_line import exit_status
    from flows.run import run

    status = exit_status(lambda: run(Namespace(overrides=[])))
    clock.stop()
    own = [[*key, *seconds] for key, seconds in clock.own.items()]
    found = {
        "began": began,
        "ended": time.monotonic(),
        "own": own,
        "tasks": clock.tasks,
        "beside": clock.beside,
    }
    notes.write_text(json.dumps(found))
    sys.exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
