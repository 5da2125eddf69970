"""Does training work on a GPU, and how fast is it? At most ten minutes on one GPU.

    python -m bench.gpu                                  # all parts; prints the page
    python -m bench.gpu --write                          # also to docs/benchmarks/gpu.md
    python -m bench.gpu --device cpu --tiny --parts kinds speed

Ends with 1 where a part is wrong.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from bench.faults.project import small_project
from bench.gpu import checks
from bench.gpu.checks import Device
from bench.gpu.speed import FULL, TINY, Size, speed
from bench.shared.report import machine_line, print_report
from bench.training.cases import SEED
from bench.training.windows import write_windows
from recsys.training.launch import run_on_ranks

REPORT = Path("docs/benchmarks/gpu.md")
EXACT: dict[str, Callable[[Device], list[str]]] = {
    "kinds": checks.kinds,
    "host_memory": checks.host_memory,
    "waits": checks.waits,
    "overlap": checks.overlap,
    "checkpoints": checks.checkpoints,
    "bf16": checks.bf16,
}
PARTS = (*EXACT, "speed", "run")
RUN_S = 240.0


def measure(device: Device, parts: list[str], size: Size) -> dict[str, list[str]]:
    """The lines of each of ``parts``, one after the other; an error is a part's only line."""
    found: dict[str, list[str]] = {}
    for part in parts:
        started = time.perf_counter()
        try:
            if part == "run":
                lines = run(device)
            elif part == "speed":
                lines = _timed(device, size)
            else:
                lines = run_on_ranks(EXACT[part], (device,), 1, 1)[0]
        except Exception as error:  # what comes after it is worth knowing too
            traceback.print_exc()
            lines = [f"WRONG: {type(error).__name__}: {str(error).splitlines()[0]}"]
        found[part] = [*lines, "", f"{time.perf_counter() - started:.0f} s."]
        print(f"{part}: {found[part][-1]}", file=sys.stderr, flush=True)
    return found


def run(device: Device) -> list[str]:
    """All stages of a small copy of the project, one rank on ``device``."""
    with tempfile.TemporaryDirectory() as folder:
        project = small_project(Path(folder) / "project")
        command = [sys.executable, "-m", "flows.pipeline", "--set", "train.world_size=1"]
        command += ["--set", f"train.device={device}"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for dvc
        done = subprocess.run(
            command,
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(project), "PATH": path},
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return [f"WRONG: ended with {done.returncode}: {' '.join(last)}"]
    return ["    " + line for line in done.stdout.splitlines()[-12:]]


def page(device: Device, found: dict[str, list[str]]) -> str:
    """The Markdown page."""
    name = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    lines = [f"# On {name}", "", f"{machine_line()}."]
    for part, said in found.items():
        lines += ["", f"## {part}", "", *said]
    return "\n".join(lines) + "\n"


def _timed(device: Device, size: Size) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        windows = Path(folder) / "windows"
        write_windows(windows, size.table_rows, 4 * max(size.batches), 1, SEED)
        return run_on_ranks(speed, (device, size, windows), 1, os.cpu_count() or 1)[0]


def main() -> int:
    """Run the parts, print the page; 1 where one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="models that a CPU trains in a second")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT}")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch sees no GPU; use --device cpu --tiny", file=sys.stderr)
        return 2
    found = measure(given.device, given.parts, TINY if given.tiny else FULL)
    print_report(page(given.device, found), REPORT if given.write else None)
    return 0 if all(map(checks.is_right, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
