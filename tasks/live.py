"""Follow models while they train: what the library notes after each window goes into MLflow
runs."""

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.tracking import (
    FAILED,
    KILLED,
    RunRecord,
    end_run,
    finish_run,
    now_ms,
    record_points,
    start_run,
)

logger = logging.getLogger(__name__)
LIVE = Path(".work/live")
LOOK_SECONDS = 1.0
SUFFIX = ".jsonl"


class Follower:
    """The MLflow runs of the models whose files are in ``folder``.

    Args:
        run_of: maps a model's name, taken from its file name, to what its run holds from the start.
    """

    def __init__(self, folder: Path, run_of: Callable[[str], RunRecord]) -> None:
        self.folder, self._run_of = folder, run_of
        self._read: dict[str, int] = {}  # bytes read of each file
        self._runs: dict[str, RunRecord] = {}
        self._sent: dict[str, set[tuple[str, int]]] = {}  # metric and step of values already sent
        self._looking = threading.Lock()

    def look(self) -> None:
        """Record what was noted since the last look."""
        with self._looking:
            self._look()

    def finish(self, name: str, curves: dict[str, list[float | None]], **final: object) -> None:
        """Record that the model ``name`` is done, with its curves and the artifacts, metrics and
        tags in ``final``. A model that was not seen training gets a run that begins and ends at
        once."""
        self.look()
        run = self._runs.pop(name, None)
        if run is None:
            run = self._run_of(name)
            start_run(run)
        sent = self._sent.get(name, set())
        run.points = [
            (metric, step, value, now_ms())
            for metric, curve in curves.items()
            for step, value in enumerate(curve)
            if value is not None and (metric, step) not in sent
        ]
        for key, value in final.items():
            held = getattr(run, key)
            setattr(run, key, held | value)
        finish_run(run)

    def abandon(self, status: str) -> None:
        """End the runs that are not finished."""
        for run in self._runs.values():
            end_run(run.key, status)
        self._runs.clear()

    def _look(self) -> None:
        for path in sorted(self.folder.rglob(f"*{SUFFIX}")):
            name = path.relative_to(self.folder).as_posix().removesuffix(SUFFIX)
            with path.open("rb") as file:
                file.seek(self._read.get(name, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            if whole:
                self._read[name] = self._read.get(name, 0) + len(whole)
                self._take(name, [json.loads(line) for line in whole.splitlines()])

    def _take(self, name: str, lines: list[dict]) -> None:
        if name not in self._runs:
            self._runs[name] = self._run_of(name)
            self._runs[name].started_ms = lines[0]["time_ms"]
            start_run(self._runs[name])
            self._sent[name] = set()
        sent, points = self._sent[name], []
        for line in lines:  # after a restart of the ranks a window is noted again
            for metric, value in line["values"].items():
                key = (f"window/{metric}", line["step"])
                if key not in sent:
                    sent.add(key)
                    points.append((*key, value, line["time_ms"]))
        if points:
            record_points(self._runs[name].key, points)


@contextmanager
def following(name: str, run_of: Callable[[str], RunRecord]) -> Iterator[Follower]:
    """Follow the models that train in the block; the library notes windows in the follower's
    ``folder``.

    Runs that the block leaves unfinished are ended with it.
    """
    folder = LIVE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    follower, ended = Follower(folder, run_of), threading.Event()

    def follow() -> None:
        while not ended.wait(LOOK_SECONDS):
            try:
                follower.look()
            except Exception as error:  # training goes on
                logger.warning("models in training are no longer followed: %s", error)
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join()

    try:
        yield follower
    except Exception:
        stop()
        follower.abandon(FAILED)
        raise
    except BaseException:
        stop()
        follower.abandon(KILLED)
        raise
    stop()
    follower.abandon(FAILED)
    shutil.rmtree(folder, ignore_errors=True)
