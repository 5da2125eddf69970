"""Kill work at a random moment, run it again, and compare what it leaves with an undisturbed
run."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

VICTIMS = ("the tree", "the parent", "a child")
END_S = 60.0  # in which the children of a killed parent end by themselves
LONGEST_S = 3600.0

Start = Callable[[Path], int]  # begins the work in a folder; the id of its process


@dataclass(frozen=True)
class Kill:
    """One kill: of what, when, whether the work was still under way then, how many processes it
    left alive, and whether a second run ends with the bytes of an undisturbed one."""

    victim: str
    after_s: float
    hit: bool
    left: int
    same: bool


def campaign(
    start: Start, folders: Iterator[Path], results: list[str], kills: int, seed: int
) -> list[Kill]:
    """Run the work once undisturbed, then ``kills`` times with one kill at a random moment.

    Args:
        folders: where to work; each is ready for a first run.
        results: files and folders, in a folder, that have to be the same.
    """
    draw = random.Random(seed)
    seconds, expected = undisturbed(start, next(folders), results)
    found = []
    for _ in range(kills):
        victim, after_s = draw.choice(VICTIMS), draw.uniform(0.0, seconds)
        found.append(kill_once(start, next(folders), results, expected, victim, after_s, draw))
    return found


def undisturbed(start: Start, folder: Path, results: list[str]) -> tuple[float, dict[str, str]]:
    """Seconds that the work takes in ``folder``, and the hashes of its results.

    Raises:
        RuntimeError: it leaves none.
    """
    started = time.monotonic()
    wait_for(psutil.Process(start(folder)), LONGEST_S)
    seconds, expected = time.monotonic() - started, hashes(folder, results)
    if not expected:
        raise RuntimeError(f"{folder}: the undisturbed run left none of {', '.join(results)}")
    return seconds, expected


def kill_once(
    start: Start,
    folder: Path,
    results: list[str],
    expected: dict[str, str],
    victim: str,
    after_s: float,
    draw: random.Random,
) -> Kill:
    """Work in ``folder``, ``victim`` of which is killed ``after_s`` seconds after its start; then
    again to the end."""
    process = psutil.Process(start(folder))
    ended = wait_for(process, after_s)
    family = descendants(process)
    hit = not ended and strike(process, family, victim, draw)
    # A parent whose child was killed goes on, restarts it or gives up
    wait_for(process, LONGEST_S)
    _, alive = psutil.wait_procs(family, timeout=END_S)
    wait_for(psutil.Process(start(folder)), LONGEST_S)
    return Kill(victim, after_s, hit, len(alive), hashes(folder, results) == expected)


def strike(
    process: psutil.Process, family: list[psutil.Process], victim: str, draw: random.Random
) -> bool:
    """SIGKILL for ``victim``; whether there was one."""
    victims = {"the tree": [process, *family], "the parent": [process], "a child": family}[victim]
    if victim == "a child" and family:
        victims = [draw.choice(ranks(family) or family)]
    for one in victims:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    return bool(victims)


def ranks(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that another one of them has started: ranks, by their server."""
    ids = {one.pid for one in family}
    found = []
    for one in family:
        with suppress(psutil.NoSuchProcess):
            if one.ppid() in ids:
                found.append(one)
    return found


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes under ``process``."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(process: psutil.Process, seconds: float) -> bool:
    """Whether ``process`` ends within ``seconds``."""
    try:
        process.wait(timeout=seconds)
    except psutil.TimeoutExpired:
        return False
    return True


def hashes(folder: Path, results: list[str]) -> dict[str, str]:
    """SHA-256 of every file of ``results``, by its path in ``folder``."""
    files = [
        path
        for name in results
        for path in sorted([folder / name, *(folder / name).rglob("*")])
        if path.is_file()
    ]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
