"""The campaign's other faults: damaged files, a full and a read-only disk, a clock that jumps,
servers that are killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.faults import warm
from bench.faults.kills import LONGEST_S, hashes, wait_for
from bench.faults.project import RESULTS
from tests.support.files import flip_a_bit
from tests.support.projects import environment

CALM = "calm"
LAST = warm.NAMES[-1]
BESIDES = (".work", ".tracking", ".dvc/cache", "dvc.lock", "mlflow.db")  # that are no results
BYTES_LEFT = 200_000  # on the full disk
DISK_STAGE, BEFORE_IT = "teacher", "partition"
CLOCK_SOURCE = Path(__file__).with_name("jumping_clock.c")
DAY_S = 24 * 3600
JUMPS_S = (0, -3 * DAY_S, 400 * DAY_S)  # one after the other while the stage runs
JUMP_EVERY_S = 3.0
Row = dict[str, Any]


def project(folder: Path, name: str, before: str) -> Path:
    """A new copy of a calm project."""
    copy = folder / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / CALM / before, copy, symlinks=True)
    (copy / "output.txt").unlink(missing_ok=True)
    return copy


def outcome(fault: str, folder: Path, expected: dict[str, str], status: int | None = None) -> Row:
    """What was said, and whether the results are those of an undisturbed run.

    Args:
        status: of the command; None: as output.txt has it.
    """
    output = folder / "output.txt"
    lines = output.read_text().splitlines() if output.is_file() else []
    ends = [line.removeprefix("status ") for line in lines if line.startswith("status ")]
    said = [line for line in lines if line.startswith("error: ")]
    return {
        "fault": fault,
        "status": status if status is not None else int(ends[-1]) if ends else None,
        "traceback": any(line.startswith("Traceback") for line in lines),
        "said": said[-1].replace(str(folder), "PROJECT") if said else "",
        "same": hashes(folder, RESULTS) == expected,
    }


def again(stage: str, folder: Path) -> None:
    """Run the pipeline up to ``stage``, its output anew."""
    (folder / "output.txt").unlink(missing_ok=True)
    wait_for(psutil.Process(warm.start(stage, folder)), LONGEST_S)


def damage(name: str, folder: Path) -> Iterator[Row]:
    """A bit flipped in a file that the pipeline leaves, then the pipeline again: made anew as it
    was, or refused in a line."""
    copy = project(folder, f"damage-{name.replace('/', '-')}", LAST)
    flip_a_bit(copy / name)
    again(LAST, copy)
    yield outcome(f"a bit of {name}", copy, hashes(folder / CALM / LAST, RESULTS))
    shutil.rmtree(copy)


def one_of_each_kind(folder: Path, files: list[str]) -> list[str]:
    """The first file of each folder and name, numbers aside, that is not empty; one of DVC's
    cache."""
    kinds: dict[tuple[str, ...], str] = {}
    for name in files:
        path = Path(name)
        if not (folder / name).stat().st_size or path.suffix in {".png", ".lock"}:
            continue
        letters = "".join(letter for letter in path.name if not letter.isdigit())
        # Folders and files of these are named by hashes or times
        of_the_top = path.parts[0] in (".dvc", ".tracking")
        kind = path.parts[:1] if of_the_top else (*path.parts[:2], letters)
        kinds.setdefault(kind, name)
    return list(kinds.values())


def disks(folder: Path) -> Iterator[Row]:
    """A full and a read-only disk under the teacher; then room, and the stage again."""
    if os.geteuid():
        return
    expected = hashes(folder / CALM / DISK_STAGE, RESULTS)
    base = folder / "disk"
    for kind in ("full", "read-only"):
        base.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(base)]
        subprocess.run(mount, check=True)
        try:
            copy = project(base, "project", str(folder.resolve() / CALM / BEFORE_IT))
            (copy / warm.TEMPORARY).mkdir(exist_ok=True)
            (copy / "output.txt").symlink_to(folder.resolve() / "disk-output.txt")
            (folder / "disk-output.txt").unlink(missing_ok=True)
            filler = base / "filler"
            if kind == "full":
                room = shutil.disk_usage(base).free - BYTES_LEFT
                with filler.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, room)
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(base)], check=True)
            wait_for(psutil.Process(warm.start(DISK_STAGE, copy)), LONGEST_S)
            row = outcome(f"a {kind} disk", copy, expected)
            subprocess.run(["mount", "-o", "remount,rw", str(base)], check=True)
            filler.unlink(missing_ok=True)
            wait_for(psutil.Process(warm.start(DISK_STAGE, copy)), LONGEST_S)
            yield row | {"same": hashes(copy, RESULTS) == expected}
        finally:
            subprocess.run(["umount", "-l", str(base)], check=True)


def clock(folder: Path) -> Iterator[Row]:
    """A clock that jumps back by days and ahead by a year while the teacher is trained."""
    expected = hashes(folder / CALM / DISK_STAGE, RESULTS)
    copy = project(folder, "clock", BEFORE_IT)
    jump, clock_library = copy / "jump", copy / "clock.so"
    jump.write_text(str(JUMPS_S[0]))
    compiler = ["gcc", "-shared", "-fPIC", "-o", str(clock_library), str(CLOCK_SOURCE)]
    subprocess.run(compiler, check=True)
    preload = {"LD_PRELOAD": str(clock_library), "CLOCK_OFFSET_FILE": str(jump)}
    variables = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    with (copy / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.teacher"],
            cwd=copy,
            env={**variables, **preload, "PYTHONPATH": str(copy)},
            stdout=output,
            stderr=output,
        )
        number = 0
        while process.poll() is None:
            time.sleep(JUMP_EVERY_S)
            number += 1
            jump.write_text(str(JUMPS_S[number % len(JUMPS_S)]))
    jump.unlink()
    clock_library.unlink()
    row = outcome("a clock that jumps", copy, expected, process.returncode)
    again(DISK_STAGE, copy)
    yield row | {"same": hashes(copy, RESULTS) == expected}


def servers(folder: Path) -> Iterator[Row]:
    """MLflow's and Prefect's servers, each killed while the last two stages run under Prefect."""
    expected = hashes(folder / CALM / LAST, RESULTS)
    for kind in ("MLflow", "Prefect"):
        copy = project(folder, f"server-{kind}", "students")
        with mlflow_server(copy) as (mlflow, uri):
            tracking = copy / "params/tracking.yaml"
            settings = yaml.safe_load(tracking.read_text())
            tracking.write_text(yaml.safe_dump(settings | {"uri": uri}))
            variables = environment(copy)
            prefect = next(
                one
                for one in psutil.Process().children()
                if "prefect" in " ".join(one.cmdline()) and one.is_running()
            )
            with (copy / "output.txt").open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "flows.pipeline"],
                    cwd=copy,
                    env=variables,
                    stdout=output,
                    stderr=output,
                )
                said = copy / "output.txt"
                while "evaluate has to run" not in said.read_text() and process.poll() is None:
                    time.sleep(0.1)
                # With its workers: each leads a group
                os.killpg((mlflow if kind == "MLflow" else prefect).pid, signal.SIGKILL)
                status = process.wait()
        row = outcome(f"{kind}'s server killed", copy, expected, status)
        tracking.write_text(yaml.safe_dump(settings))
        again(LAST, copy)
        yield row | {"same": hashes(copy, RESULTS) == expected}


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A server of MLflow's and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *store, "--artifacts-destination", str(folder / "served")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.2)
        yield psutil.Process(process.pid), f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def jobs(folder: Path) -> list[tuple[str, Callable[[Path], Iterator[Row]]]]:
    """All of them, by name."""
    calm = folder / CALM / LAST
    files = one_of_each_kind(calm, list(hashes(calm, [*RESULTS, *BESIDES])))
    return [
        ("disks", disks),
        ("clock", clock),
        ("servers", servers),
        *((f"damage {name}", partial(damage, name)) for name in files),
    ]
