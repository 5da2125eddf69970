"""Faults of every kind against a small project: is anything lost, is anything silent?

    python -m bench.faults.campaign --work /tmp/faults --kills 100 --write

Runs the pipeline, stage by stage, and the stream once undisturbed. Then a stage or the stream is
killed at a random moment (the whole tree, the parent, one rank) in the project as it was before it,
and run again: it must leave the bytes of the undisturbed run, no process and no temporary file.
Other faults follow: see others.py. Each result is kept as it is found: the next call goes on where
one was stopped, and ``--write --seconds 0`` only writes the page of what there is.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from bench.faults import others, warm
from bench.faults.kills import VICTIMS, hashes, kill_once, undisturbed
from bench.faults.page import REPORT, page
from bench.faults.project import RESULTS, small_project

CALM, RESULT_FILE, STAGES_FILE = "calm", "results.jsonl", "calm.json"
STREAM_SHARE = 4  # every fourth kill is of the stream
AFTER = "partition"  # the stage from whose results the stream starts
_writing = Lock()


@dataclass(frozen=True)
class Work:
    """A piece of work: the calm project that it starts from, how long it takes there, and the
    hashes of what it leaves."""

    name: str
    before: str
    seconds: float
    expected: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for projects and results")
    parser.add_argument("--kills", type=int, default=100, help="over the pipeline and the stream")
    parser.add_argument("--at-once", type=int, default=1, help="projects worked on at a time")
    parser.add_argument("--only", default="", help="jobs whose name begins so")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    if options.seconds > 0:
        works = calm_works(options.work / CALM)
        jobs = [
            *((f"kill {number}", partial(kill, number, works)) for number in range(options.kills)),
            *others.jobs(options.work),
        ]
        done = {name for name, _ in found(options.work)}
        with ThreadPoolExecutor(options.at_once) as pool:
            for name, job in jobs:
                if name not in done and name.startswith(options.only):
                    pool.submit(note, name, job, options.work, end)
    lines = page([row for _, row in found(options.work)])
    print("\n".join(lines))
    if options.write:
        REPORT.write_text("\n".join(lines) + "\n")


def note(name: str, job: Any, folder: Path, end: float) -> None:
    """Do ``job``, if there is time, and keep what it finds."""
    if time.monotonic() > end:
        return
    try:
        rows = list(job(folder))
    except Exception as error:  # the next call tries it again
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
        return
    with _writing, (folder / RESULT_FILE).open("a") as file:
        for row in rows:
            file.write(json.dumps({"job": name, **row}) + "\n")
            print(f"{name}: {row}", flush=True)


def found(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """What was found so far, by job."""
    path = folder / RESULT_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(row.pop("job"), row) for row in rows]


def calm_works(folder: Path) -> list[Work]:
    """Each stage's work and the stream's, after they have run once; the project as it was before
    each is kept in ``folder``."""
    file = folder / STAGES_FILE
    if file.is_file():
        return [Work(**one) for one in json.loads(file.read_text())]
    shutil.rmtree(folder, ignore_errors=True)
    works = []
    small_project(folder / "new")
    before = "new"
    for name in warm.NAMES:
        shutil.copytree(folder / before, folder / name, symlinks=True)
        works.append(Work(name, before, *undisturbed(starter(name), folder / name, RESULTS)))
        before = name
    name = warm.STREAM
    shutil.copytree(folder / AFTER, folder / name, symlinks=True)
    works.append(Work(name, AFTER, *undisturbed(starter(name), folder / name, RESULTS)))
    file.write_text(json.dumps([asdict(one) for one in works]))
    return works


def starter(name: str) -> partial[int]:
    """Begins the work ``name`` in a folder."""
    return partial(warm.start, name)


def kill(number: int, works: list[Work], folder: Path) -> Iterator[dict[str, Any]]:
    """One kill, at a random moment of a stage of the pipeline or of the stream."""
    draw = random.Random(number)
    *stages, stream = works
    work = stream if number % STREAM_SHARE == STREAM_SHARE - 1 else draw.choice(stages)
    project = folder / f"kill-{number}"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(folder / CALM / work.before, project, symlinks=True)
    (project / "output.txt").unlink(missing_ok=True)
    victim = VICTIMS[number % len(VICTIMS)]
    one = kill_once(
        starter(work.name),
        project,
        RESULTS,
        work.expected,
        victim,
        draw.uniform(0.0, work.seconds),
        draw,
    )
    tidy = not [path for path in (project / warm.TEMPORARY).iterdir() if path.name != ".ses"]
    differ = []
    if one.same and tidy:
        shutil.rmtree(project)
    else:
        now = hashes(project, RESULTS)
        differ = sorted(
            name for name in now | work.expected if now.get(name) != work.expected.get(name)
        )
    yield {"work": work.name, **asdict(one), "tidy": tidy, "differ": differ}


if __name__ == "__main__":
    main()
