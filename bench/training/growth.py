"""What does training a teacher cost as the log grows: more rows, or more windows?

    python -m bench.training.growth --rows 100000 1000000 10000000 --windows 10 30 100 300 --write
    python -m bench.training.growth --rows 20000 100000 --windows 5 20      # two minutes

A small teacher trains through a generated log with snapshots and checkpoints after each window, as
the stage does, in a process of its own per size. Times are processor seconds without the imports,
so that a busy machine changes them little. ``--rows`` are in ten windows; ``--windows`` have
WINDOW_ROWS rows each, and "per further window" is what the windows between two sizes took.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import process_time

from bench.shared.report import machine_lines, print_table
from bench.training.cases import SEED
from bench.training.loop import BYTES_PER_KIB
from bench.training.windows import TABLES, VALUES, write_windows
from recsys.data.encoder import encoder_of_ids
from recsys.distill.teacher import train_teacher
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import TrainingJob
from recsys.models.settings import ModelSettings
from recsys.training.settings import TrainSettings
from recsys.units import MEGA

REPORT = Path("docs/benchmarks/growth.md")
TABLE_ROWS, WINDOW_ROWS, WINDOWS = 1000, 2000, 10
ONE = "--one"


@dataclass(frozen=True)
class Cost:
    """Of one run: ``rows`` in ``windows`` windows, peak resident memory, bytes written."""

    rows: int
    windows: int
    cpu_s: float
    peak_mib: float
    written_mb: float


def train(folder: Path, rows: int, windows: int) -> Cost:
    """Train the teacher on a new log in ``folder``, in this process."""
    schema = write_windows(folder / "windows", TABLE_ROWS, rows // windows, windows, SEED)
    encoder_of_ids(VALUES, schema.categorical, schema.domains, given=True).save(folder / "windows")
    model = ModelSettings(embedding_dimension=8, dense_layers=[32], over_layers=[32, 16])
    settings = TeacherSettings(
        model=model, dense_passes=0, table_learning_rate=None, snapshot_every_windows=1, seed=SEED
    )
    launch = TrainSettings(world_size=1, global_batch_size=256, sharding="table_wise")
    output = folder / "output"
    output.mkdir()
    started = process_time()
    job = TrainingJob(folder / "windows", settings, launch, output)
    train_teacher(job, resume_dir=folder / "resume")
    used = process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIB / 2**20
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Cost(rows, windows, used, peak, written / MEGA)


def measure(rows: int, windows: int) -> Cost:
    """:func:`train` in a process of its own."""
    command = [sys.executable, "-m", "bench.training.growth", ONE, str(rows), str(windows)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def row_lines(costs: list[Cost]) -> list[str]:
    """The table by number of rows."""
    return [
        "| rows | CPU seconds | rows per CPU second | peak MiB | written MB |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {one.rows:,} | {one.cpu_s:.1f} | {one.rows / one.cpu_s:,.0f} | {one.peak_mib:,.0f} "
            f"| {one.written_mb:,.1f} |"
            for one in costs
        ),
    ]


def window_lines(costs: list[Cost]) -> list[str]:
    """The table by number of windows."""
    further = [""] + [
        f"{1000 * (after.cpu_s - before.cpu_s) / (after.windows - before.windows):,.0f}"
        for before, after in pairwise(costs)
    ]
    return [
        "| windows | CPU seconds | CPU ms per further window | peak MiB | written MB |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {one.windows} | {one.cpu_s:.1f} | {each} | {one.peak_mib:,.0f} "
            f"| {one.written_mb:,.1f} |"
            for one, each in zip(costs, further, strict=True)
        ),
    ]


def main() -> None:
    """Measure each size, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[10**5, 10**6, 10**7])
    parser.add_argument("--windows", nargs="+", type=int, default=[10, 30, 100, 300])
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT}")
    parser.add_argument(ONE, nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(train(Path(folder), *given.one))))
        return
    by_rows = [measure(rows, WINDOWS) for rows in sorted(given.rows)]
    by_windows = [measure(count * WINDOW_ROWS, count) for count in sorted(given.windows)]
    about = [
        f"One rank, one thread, batches of 256 rows, {TABLES} tables of {TABLE_ROWS} rows x 8; a "
        "snapshot and a checkpoint after each window. Imports are not counted.",
    ]
    command = f"python -m bench.training.growth {' '.join(sys.argv[1:])}"
    table = [*row_lines(by_rows), "", *window_lines(by_windows)]
    head = machine_lines("Growth", command, {"OMP_NUM_THREADS": "1"})
    print_table(head, about, table, REPORT if given.write else None)


if __name__ == "__main__":
    main()
