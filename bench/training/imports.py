"""Where the processor time goes in the imports with which a stage, or a rank, starts.

    python -m bench.training.imports                                   # the engine
    python -m bench.training.imports recsys.distill.teacher --write

Each module's own CPU seconds, without the modules it imports, summed per package: the median of
REPEATS processes, with all files in the page cache.
"""

import argparse
import importlib
import importlib._bootstrap
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from bench.shared.report import machine_lines, print_table

REPORT = Path("docs/benchmarks/imports.md")
ENGINE = "recsys.training.engine"
REPEATS, SHOWN = 3, 14
ONE = "--one"


def timed_import(module: str) -> dict[str, float]:
    """CPU seconds of importing ``module`` in this process, by package."""
    own: defaultdict[str, float] = defaultdict(float)
    inner = [0.0]  # what is imported by each module that is being imported
    bootstrap: Any = importlib._bootstrap
    load = bootstrap._load_unlocked

    def timed(spec: Any) -> Any:
        inner.append(0.0)
        started = process_time()
        try:
            return load(spec)
        finally:
            whole = process_time() - started
            own[spec.name.split(".")[0]] += whole - inner.pop()
            inner[-1] += whole

    bootstrap._load_unlocked = timed
    try:
        importlib.import_module(module)
    finally:
        bootstrap._load_unlocked = load
    return dict(own)


def measure(module: str) -> dict[str, float]:
    """Medians over processes."""
    command = [sys.executable, "-m", "bench.training.imports", ONE, module]
    runs = [
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        for _ in range(REPEATS)
    ]
    names = {name for run in runs for name in run}
    return {name: median(run.get(name, 0.0) for run in runs) for name in names}


def lines(found: dict[str, float]) -> list[str]:
    """The table, the largest first."""
    total = sum(found.values())
    shown = sorted(found, key=lambda name: -found[name])[:SHOWN]
    rest = total - sum(found[name] for name in shown)
    return [
        "| package | CPU seconds | part |",
        "|---|---:|---:|",
        *(f"| {name} | {found[name]:.2f} | {found[name] / total:.0%} |" for name in shown),
        f"| {len(found) - len(shown)} others | {rest:.2f} | {rest / total:.0%} |",
        f"| all | {total:.2f} | |",
    ]


def main() -> None:
    """Measure a module's imports, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", nargs="?", default=ENGINE)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT}")
    parser.add_argument(ONE, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(timed_import(given.module)))
        return
    head = machine_lines("Imports", f"python -m bench.training.imports {given.module}", {})
    table = lines(measure(given.module))
    print_table(head, [f"`import {given.module}`."], table, REPORT if given.write else None)


if __name__ == "__main__":
    main()
