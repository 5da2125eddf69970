"""Faults of every kind against a small project: is anything lost, is anything silent?

    python -m bench.faults.campaign --work /tmp/faults --kills 100 --write

Runs the pipeline and the stream once undisturbed, then with one kill each at a random moment (the
whole tree, the parent, one child), and again to the end; flips a bit in every kind of file that the
pipeline leaves; fills the disk and makes it read-only (as root, on a tmpfs; else it says that it
did not). Goes on where the last call stopped; ``--seconds`` ends it early.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from bench.faults.kills import VICTIMS, Kill, campaign, hashes
from tests.support.files import flip_a_bit
from tests.support.projects import copy_project, environment

REPORT = Path("docs/benchmarks/faults.md")
ROWS_LINE, FEWER_ROWS = "rows: 240000", "rows: 12000"
SETTINGS = {
    "data.max_windows": "4",
    "train.world_size": "2",
    "train.global_batch_size": "128",
    "teacher.model.dense_layers": "[16]",
    "teacher.model.over_layers": "[16]",
    "teacher.checkpoint_every_batches": "4",
    "students.seeds": "[1]",
    "towers.partition.probe_windows": "2",
    "students.rows_auto_windows": "2",
    "teacher.rate_auto_windows": "2",
    "evaluate.first_evaluation_window": "2",
    "evaluate.bootstrap_samples": "20",
}
OPTIONS = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
WORKS = {
    "pipeline": (
        ["flows.pipeline", *OPTIONS],
        ["data/windows", "data/scores", "models/baselines", "models/teacher", "models/students"],
    ),
    "stream": (
        ["flows.stream", *OPTIONS],
        ["data/scores", "models/teacher", "models/students"],
    ),
}
KILLS_PER_PART = 5  # of one undisturbed run
SMALL_DISK = "24m"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for projects and results")
    parser.add_argument("--kills", type=int, default=100, help="over the pipeline and the stream")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    file = options.work / "results.json"
    found: dict[str, list[Any]] = json.loads(file.read_text()) if file.is_file() else {}
    parts = -(-options.kills // (KILLS_PER_PART * len(WORKS)))
    jobs: list[tuple[str, Callable[[], list[Any]]]] = [
        (f"{name} {part}", lambda n=name, p=part: kills_of(n, p, options.work))
        for part in range(parts)
        for name in WORKS
    ]
    jobs += [
        ("damage", lambda: damage(options.work)),
        ("disk", lambda: disks(options.work)),
    ]
    for name, run in jobs:
        if name in found:
            continue
        if time.monotonic() > end:
            break
        found[name] = run()
        file.write_text(json.dumps(found, indent=1))
        print(f"{name}: {summary(found[name])}", flush=True)
    lines = report(found)
    print("\n".join(lines))
    if options.write:
        REPORT.write_text("\n".join(lines) + "\n")


def kills_of(work: str, part: int, folder: Path) -> list[dict[str, Any]]:
    """KILLS_PER_PART kills of one work."""
    command, results = WORKS[work]
    base = folder / f"{work}-{part}"
    shutil.rmtree(base, ignore_errors=True)
    found = campaign(starter(command), projects(base), results, KILLS_PER_PART, seed=part)
    if all(one.same for one in found):
        shutil.rmtree(base)
    return [asdict(one) for one in found]


def projects(base: Path) -> Iterator[Path]:
    """New small projects, one after the other."""
    for number in count():
        yield small_project(base / str(number))


def small_project(folder: Path) -> Path:
    """A copy of the project whose log is small."""
    folder.mkdir(parents=True)
    copy_project(folder)
    description = folder / "params/datasets/synthetic.yaml"
    description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
    return folder


def starter(command: list[str]) -> Callable[[Path], int]:
    """Begins ``command`` in a project; its output is added to output.txt there."""

    def start(folder: Path) -> int:
        with (folder / "output.txt").open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env=environment(folder),
                stdout=output,
                stderr=subprocess.STDOUT,
            ).pid

    return start


def run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """``command`` in a project, to its end."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def damage(work: Path) -> list[dict[str, Any]]:
    """A bit flipped in each kind of file that the pipeline leaves, and what a further run of all
    stages says of it."""
    base = work / "damage"
    shutil.rmtree(base, ignore_errors=True)
    folder = small_project(base)
    command, results = WORKS["pipeline"]
    run(folder, command)
    expected, found = hashes(folder, results), []
    for path in one_of_each_kind(folder, list(expected)):
        whole = (folder / path).read_bytes()
        flip_a_bit(folder / path)
        ended = run(folder, [*command, "--set", "evaluate.bootstrap_samples=21"])
        message = ended.stderr.strip().splitlines()
        found.append(
            {
                "file": path,
                "status": ended.returncode,
                "traceback": "Traceback" in ended.stderr,
                "message": message[-1] if message else "",
                "same": hashes(folder, results) == expected,
            }
        )
        (folder / path).write_bytes(whole)
    return found


def one_of_each_kind(folder: Path, files: list[str]) -> list[str]:
    """The first file of each name, numbers and dates aside, that is not empty."""
    kinds: dict[tuple[str, ...], str] = {}
    for name in files:
        if (folder / name).stat().st_size:
            path = Path(name)
            letters = "".join(letter for letter in path.name if not letter.isdigit())
            kinds.setdefault((*path.parts[:2], letters), name)
    return list(kinds.values())


def disks(work: Path) -> list[dict[str, Any]]:
    """A full and a read-only disk under the pipeline; then room, and a run to the end."""
    if os.geteuid():
        return [{"disk": "not tried: mounting needs root"}]
    command, results = WORKS["pipeline"]
    expected = hashes(work / "damage", results)
    found = []
    base = work / "disk"
    for kind, options in (("full", f"size={SMALL_DISK}"), ("read-only", "ro")):
        base.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(base)]
        subprocess.run(mount, check=True)
        try:
            folder = small_project(base / "project")
            remount = ["mount", "-o", f"remount,{options}", str(base)]
            subprocess.run(remount, check=True)
            ended = run(folder, command)
            subprocess.run(["mount", "-o", "remount,rw,size=2g", str(base)], check=True)
            run(folder, command)
            found.append(
                {
                    "disk": kind,
                    "status": ended.returncode,
                    "traceback": "Traceback" in ended.stderr,
                    "message": (ended.stderr.strip().splitlines() or [""])[-1],
                    "same": hashes(folder, results) == expected,
                }
            )
        finally:
            subprocess.run(["umount", "-l", str(base)], check=True)
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """How many of a job's faults were survived."""
    same = sum(bool(row.get("same")) for row in rows)
    return f"{same} of {len(rows)} end with the same bytes"


def report(found: dict[str, list[Any]]) -> list[str]:
    """The page."""
    lines = [
        "# Faults",
        "",
        "`python -m bench.faults.campaign --work /tmp/faults --kills 100 --write`: a small "
        "project, two ranks.",
        "",
        "| work | kills | of the tree | of the parent | of a child | hit it at work | processes "
        "left | the same bytes after a second run |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for work in WORKS:
        kills = [
            Kill(**one) for name, rows in found.items() if name.startswith(work) for one in rows
        ]
        victims = [sum(one.victim == victim for one in kills) for victim in VICTIMS]
        lines.append(
            f"| {work} | {len(kills)} | {' | '.join(map(str, victims))} | "
            f"{sum(one.hit for one in kills)} | {sum(one.left for one in kills)} | "
            f"{sum(one.same for one in kills)} |"
        )
    lines += ["", "| damaged | exit status | traceback | what is said |", "|---|---:|---|---|"]
    for row in [*found.get("damage", []), *found.get("disk", [])]:
        what = row.get("file") or row["disk"]
        said = str(row.get("message", "")).replace("|", "\\|")
        lines.append(f"| {what} | {row.get('status', '')} | {row.get('traceback', '')} | {said} |")
    return lines


if __name__ == "__main__":
    main()
