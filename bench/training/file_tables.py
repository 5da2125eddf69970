"""What do tables in files cost? Tables three times the memory that a run may have, beside the same
in memory.

    python -m bench.training.file_tables --write   # ten minutes, 1 GiB of memory, 3 GiB of disk

A run with a limit is in a cgroup of its own (version 1's memory controller, writable), which counts
the page cache too. Where there is none it gets RLIMIT_DATA, which bounds anonymous memory only; the
report says which.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bench.shared.power_law import EXPONENT, SPREAD, power_law
from bench.shared.report import machine_lines, print_report
from recsys.data.loader import Batch
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings
from recsys.training.table_memory import RowPages
from recsys.units import BYTES_PER_GIB

REPORT = Path("docs/benchmarks/file_tables.md")
CGROUPS = Path("/sys/fs/cgroup/memory")
SPIN = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
SEED, TABLES, DIMENSION, BATCH, NUMBERS = 5, 8, 64, 4096, 13
ROW_BYTES = DIMENSION * 4 + 4  # row-wise AdaGrad
CLICK_RATE = 0.2
KIB = 1024
BASELINE = "memory, no limit"


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        memory: ``table_memory``.
        limit: bytes of memory that it may have; 0: no limit.
        rows: of each table.
        by_popularity: ids in the order of popularity; else scattered over the table, as hashing
            does.
        ahead: ask for a lookup's pages at once; else the kernel faults on one after the other.
        warm_steps: before the clock starts.
        steps: timed.
        folder: for the files.
    """

    memory: str
    limit: int
    rows: int
    by_popularity: bool
    ahead: bool
    warm_steps: int
    steps: int
    folder: str


def make_batches(case: Case) -> list[Batch]:
    """The same batches for every case but for the order of ids."""
    draw = np.random.default_rng(SEED)
    ids = torch.arange(BATCH)
    batches = []
    for _ in range(case.warm_steps + case.steps):
        ranks = [power_law(draw, case.rows, BATCH) for _ in range(TABLES)]
        if case.by_popularity:
            ranks = [popularity_order(one, case.rows) for one in ranks]
        batches.append(
            Batch(
                dense=torch.from_numpy(draw.normal(size=(BATCH, NUMBERS)).astype(np.float32)),
                sparse=KeyedJaggedTensor(
                    [f"c{position}" for position in range(TABLES)],
                    torch.from_numpy(np.concatenate(ranks)),
                    lengths=torch.ones(TABLES * BATCH, dtype=torch.int64),
                ),
                label=torch.from_numpy((draw.random(BATCH) < CLICK_RATE).astype(np.float32)),
                weight=torch.ones(BATCH),
                domain=torch.zeros_like(ids),
                group=ids,
                example_id=ids,
                event_time=ids,
                score=torch.full((BATCH,), float("nan")),
                staleness_ms=torch.zeros(BATCH, dtype=torch.int64),
                global_rows=BATCH,
            )
        )
    return batches


def popularity_order(ids: np.ndarray, rows: int) -> np.ndarray:
    """What :func:`power_law` scattered, back in the order of popularity; ``rows`` and SPREAD have
    no common divisor."""
    return ids * pow(SPREAD, -1, rows) % rows


def anonymous_bytes() -> int:
    """Anonymous memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * KIB


def measure(case: Case) -> dict[str, float]:
    """Train ``case``: samples/s, major faults per step, peak anonymous memory, seconds to build and
    to save."""
    schema = Schema(
        "bench",
        [f"n{position:02d}" for position in range(NUMBERS)],
        [CategoricalFeature(f"c{position}", case.rows) for position in range(TABLES)],
        ["all"],
        [],
        CLICK_RATE,
        {},
    )
    model = ModelSettings.model_validate(
        {
            "architecture": "dlrm",
            "embedding_dimension": DIMENSION,
            "dense_layers": [128, 64],
            "over_layers": [256, 64],
        }
    )
    settings = TrainSettings.model_validate(
        {
            "world_size": 1,
            "global_batch_size": BATCH,
            "sharding": "table_wise",
            "memory_gb": 16.0,
            "table_memory": case.memory,
            "table_file_dir": case.folder,
        }
    )
    batches = make_batches(case)
    width = schema.dense_width
    for batch in batches:
        batch.dense = torch.nn.functional.pad(batch.dense, (0, width - NUMBERS))
    if not case.ahead:
        setattr(RowPages, "ask_for", lambda *_: None)  # noqa: B010 - of another type
    started = perf_counter()
    engine = Engine(build_ranker(schema, model, None, SEED, "meta"), settings, SEED)
    built, peak = perf_counter() - started, anonymous_bytes()
    for batch in batches[: case.warm_steps]:
        engine.train_step(batch, engine.serving_loss)
    started, faults = perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    for batch in batches[case.warm_steps :]:
        engine.train_step(batch, engine.serving_loss)
        peak = max(peak, anonymous_bytes())
    seconds = perf_counter() - started
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    return {
        "samples_s": case.steps * BATCH / seconds,
        "faults": faults / case.steps,
        "anonymous": float(peak),
        "built_s": built,
    }


def worker(text: str, cgroup: str) -> None:
    """In a process of its own: join the cgroup, or take the limit, and print the measurements."""
    case = Case(**json.loads(text))
    if cgroup:
        (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    elif case.limit:
        resource.setrlimit(resource.RLIMIT_DATA, (case.limit, case.limit))
    print(json.dumps(run_on_ranks(measure, (case,), 1, 1)[0]))


@contextmanager
def cgroup_of(limit: int) -> Iterator[Path | None]:
    """A cgroup with ``limit`` bytes of memory; None where there is no limit or no controller."""
    group = CGROUPS / f"bench-file-tables-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        if limit:
            (group / "memory.limit_in_bytes").write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def run(case: Case) -> dict[str, float] | str:
    """Measurements, or one line about why there are none."""
    with cgroup_of(case.limit) as group:
        command = [
            sys.executable,
            "-m",
            "bench.training.file_tables",
            "--worker",
            json.dumps(asdict(case)),
            str(group or ""),
        ]
        environment = os.environ | SPIN | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == -9:
            return "killed by the kernel: out of memory"
        if done.returncode:
            return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        found = json.loads(done.stdout.splitlines()[-1])
        if group is not None:
            found["cgroup"] = float((group / "memory.max_usage_in_bytes").read_text())
        return found


def contenders(given: argparse.Namespace) -> dict[str, Case]:
    """What is compared, by name."""
    limit = int(given.limit_gb * BYTES_PER_GIB)
    rows = int(given.tables_gb * BYTES_PER_GIB / TABLES / ROW_BYTES)
    while math.gcd(rows, SPREAD) > 1:
        rows += 1
    folder = str(given.folder)

    def case(memory: str, bound: int, popular: bool = False, ahead: bool = True) -> Case:
        return Case(memory, bound, rows, popular, ahead, given.warm_steps, given.steps, folder)

    return {
        BASELINE: case("ram", 0),
        "file, no limit": case("file", 0),
        "file, limit": case("file", limit),
        "file, limit, page by page": case("file", limit, ahead=False),
        "file, limit, ids by popularity": case("file", limit, popular=True),
        "memory, limit": case("ram", limit),
    }


def report(results: list[tuple[str, dict[str, float] | str]], given: argparse.Namespace) -> str:
    """The Markdown of all repeats."""
    by_name: dict[str, list[dict[str, float] | str]] = {}
    for name, result in results:
        by_name.setdefault(name, []).append(result)
    rates = {
        name: [r["samples_s"] for r in found if isinstance(r, dict)]
        for name, found in by_name.items()
    }
    baseline = median(rates[BASELINE]) if rates.get(BASELINE) else math.nan
    counted = (
        "page cache and all"
        if CGROUPS.is_dir()
        else "anonymous memory only, for want of a cgroup controller"
    )
    sizes = f"--limit-gb {given.limit_gb:g} --tables-gb {given.tables_gb:g}"
    command = f"python -m bench.training.file_tables {sizes} --write"
    lines = [*machine_lines("Tables in files", command, SPIN), ""]
    lines += [
        f"{TABLES} tables, dimension {DIMENSION}, row-wise AdaGrad: {given.tables_gb:g} GiB of "
        f"rows and state; a limit",
        f"of {given.limit_gb:g} GiB ({counted}). A small DLRM, one rank, batch {BATCH}. Ids follow "
        f"a power law of",
        f"exponent {EXPONENT} and lie scattered over the tables, as hashing leaves them, but in "
        f"*ids by popularity*.",
        f"{given.warm_steps} steps of warm-up, {given.steps} timed; medians, contenders "
        f"alternating, each in a process",
        "of its own. *page by page*: without asking for a lookup's pages before the kernel reads "
        "them.",
        "",
        "| tables in | repeats | samples/s | range | of memory | major faults per step | peak "
        "anonymous GiB "
        "| peak of the cgroup GiB | s to build |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in by_name.items():
        runs = [result for result in found if isinstance(result, dict)]
        if not runs:
            lines.append(f"| {name} | {len(found)} | {found[0]} | | | | | | |")
            continue
        middle = {key: median(run[key] for run in runs) for key in runs[0]}
        low, high = min(rates[name]), max(rates[name])
        lines.append(
            f"| {name} | {len(runs)} | {middle['samples_s']:,.0f} | {low:,.0f}-{high:,.0f} "
            f"| {middle['samples_s'] / baseline:.2f} | {middle['faults']:,.0f} "
            f"| {middle['anonymous'] / BYTES_PER_GIB:.2f} | "
            f"{middle.get('cgroup', math.nan) / BYTES_PER_GIB:.2f} "
            f"| {middle['built_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Alternate the contenders over the repeats; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--limit-gb", type=float, default=1.0)
    parser.add_argument("--tables-gb", type=float, default=3.0, help="weights and optimiser state")
    parser.add_argument("--warm-steps", type=int, default=15)
    parser.add_argument("--steps", type=int, default=15, help="timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(".work/bench-tables"))
    parser.add_argument("--results", type=Path, help="file of earlier repeats, to be continued")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT}")
    given = parser.parse_args()
    if given.worker:
        worker(*given.worker)
        return
    results = (
        json.loads(given.results.read_text()) if given.results and given.results.exists() else []
    )
    for _ in range(given.repeats):
        for name, case in contenders(given).items():
            results.append((name, run(case)))
            print(*results[-1], file=sys.stderr, flush=True)
            if given.results:
                given.results.write_text(json.dumps(results))
    text = report(results, given)
    print_report(text, REPORT if given.write else None)


if __name__ == "__main__":
    main()
