"""Two models' predictions compared: seconds and memory by rows, held in memory and in one pass.

    python -m bench.evaluation.large --rows 1000000 10000000

Each size is made in a folder of its own and compared in a process of its own. Prints, a size: wall
and CPU seconds, and the process's largest memory. Twelve windows, a user per 30 rows, two models.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

WINDOWS = 12
ROWS_PER_USER = 30
CHILD = """
import json, resource, sys, time
from pathlib import Path
from recsys.evaluation import pairs
from recsys.evaluation.settings import EvaluateSettings
root, in_memory = Path(sys.argv[1]), int(sys.argv[2])
pairs.ROWS_IN_MEMORY = in_memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
started = time.monotonic()
[pair] = pairs.compare_sources(root / "a", root / "b", EvaluateSettings(), 0)
own = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "rows": pair.rows, "wall_s": time.monotonic() - started,
    "cpu_s": own.ru_utime + own.ru_stime, "peak_mib": own.ru_maxrss / 1024, "before_mib": before,
    "ne": [pair.comparisons[0].low, pair.comparisons[0].difference, pair.comparisons[0].high],
    "auc": [pair.comparisons[1].low, pair.comparisons[1].difference, pair.comparisons[1].high],
}))
"""


def write_predictions(root: Path, rows: int) -> None:
    """Predictions of models ``a`` and ``b``, which is less noisy, on the same rows."""
    for window in range(WINDOWS):
        generator = np.random.default_rng(window)
        count = rows * (window + 1) // WINDOWS - rows * window // WINDOWS
        truth = 1.2 * generator.standard_normal(count, dtype=np.float32) - 2
        start = rows * window // WINDOWS
        frame = pl.DataFrame(
            {
                "example_id": np.arange(start, start + count),
                "group": generator.integers(max(rows // ROWS_PER_USER, 2), size=count),
                "event_time": np.arange(start, start + count) * 1000,
                "label": (generator.random(count) < 1 / (1 + np.exp(-truth))).astype(np.float32),
            }
        )
        for model, noise in (("a", 1.0), ("b", 0.9)):
            logit = truth + np.float32(noise) * generator.standard_normal(count, dtype=np.float32)
            (root / model).mkdir(exist_ok=True)
            path = root / model / f"w{window:02}.parquet"
            frame.with_columns(logit=pl.Series(logit)).write_parquet(path, compression="lz4")


def measure(rows: int, in_memory: int, folder: Path | None) -> dict[str, float]:
    """Compare once, in a new process; files are in a folder in ``folder`` while it lasts."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        write_predictions(Path(made), rows)
        command = [sys.executable, "-c", CHILD, made, str(in_memory)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument(
        "--in-memory", type=int, default=0, help="up to how many rows are held in memory"
    )
    parser.add_argument("--folder", type=Path, help="where predictions are written for a while")
    options = parser.parse_args()
    for rows in options.rows:
        print(json.dumps(measure(rows, options.in_memory, options.folder)), flush=True)


if __name__ == "__main__":
    main()
