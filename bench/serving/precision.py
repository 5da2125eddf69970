"""What tables of fewer bits cost: students trained on all windows but the last, judged on the last
with their tables as fp32, fp16 and int8.

python -m bench.serving.precision RUN [RUN ...] --report docs/benchmarks/precision.md
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from bench.shared.report import machine_lines, print_table
from recsys.data.encoder import Encoder
from recsys.data.schema import Schema, window_parts
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.student_settings import PLAIN, StudentSettings, StudentsSettings
from recsys.distill.students import EXPORT_DIR, train_students
from recsys.distill.training_job import TrainingJob
from recsys.evaluation.metrics import entropy
from recsys.files import link_files
from recsys.serving.export import quantised
from recsys.serving.export_format import SCALES, TABLES
from recsys.serving.predictor import Predictor
from recsys.serving.settings import Precision
from recsys.serving.tables import Tables
from recsys.training.settings import TrainSettings

DRAWS, MEBI = 500, 1 << 20


def trained(run: Path, names: Sequence[str], seeds: Sequence[int], folder: Path) -> None:
    """Train the plain students on all windows of the run but the last, a seed after the other."""
    source = run / "data/windows"
    schema = Schema.load(source)
    windows = folder / "windows"
    windows.mkdir(parents=True)
    for window in schema.windows[:-1]:
        link_files(source / window.name, windows / window.name)
    Encoder.load(source).save(windows)
    replace(schema, windows=schema.windows[:-1]).save(windows)
    for seed in seeds:
        settings = StudentsSettings(
            students=[StudentSettings(name=name, domain=name) for name in names],
            seeds=[seed],
            arms={PLAIN: DistillationSettings(mode="none")},
            table_learning_rate=None,
        )
        output = folder / str(seed)
        output.mkdir()
        train_students(TrainingJob(windows, settings, TrainSettings(world_size=1), output))


def losses(predictor: Predictor, rows: pl.DataFrame) -> NDArray[np.float64]:
    """Log loss [N] of each row by what the network says."""
    chance = predictor.predict_encoded(rows, calibrated=False).clip(1e-12, 1 - 1e-12)
    return -np.where(rows["label"].to_numpy() > 0, np.log(chance), np.log1p(-chance))


def as_stored(predictor: Predictor, precision: Precision) -> Tables:
    """The tables of an fp32 export as an export of ``precision`` would hold them."""
    stored = quantised(torch.from_numpy(np.array(predictor.tables.values)), precision)
    scales = stored[SCALES].numpy() if SCALES in stored else None
    return Tables(stored[TABLES].numpy(), scales)


def lines_of(run: Path, seeds: Sequence[int], folder: Path) -> list[str]:
    """Rows of the table for each student of a run."""
    names = sorted(path.name for path in (run / "models/students").iterdir() if path.is_dir())
    trained(run, names, seeds, folder)
    schema = Schema.load(run / "data/windows")
    parts = window_parts(run / "data/windows", schema.windows[-1])
    last = pl.concat([pl.read_parquet(part) for part in parts])
    lines = []
    for name in names:
        own = (pl.col("domain") == schema.domains.index(name)) & pl.col("label").is_not_nan()
        rows = last.filter(own)
        floor = entropy(float(rows["label"].to_numpy().mean()))
        _, users = np.unique(rows["group"].to_numpy(), return_inverse=True)
        found: dict[str, list[NDArray[np.float64]]] = {one: [] for one in get_args(Precision)}
        sizes: dict[str, float] = {}
        for seed in seeds:
            predictor = Predictor.load(folder / str(seed) / name / PLAIN / EXPORT_DIR)
            whole = predictor.tables
            for precision in get_args(Precision):
                predictor.tables = whole
                predictor.tables = tables = as_stored(predictor, precision)
                scales = 0 if tables.scales is None else tables.scales.nbytes
                sizes[precision] = (tables.values.nbytes + scales) / MEBI
                found[precision].append(losses(predictor, rows) / floor)
        base = np.stack(found["fp32"])
        for precision in get_args(Precision):
            change, low, high = interval(np.stack(found[precision]) - base, users)
            lines.append(
                f"| {run.name} | {name} | {rows.height:,} | {precision} | {sizes[precision]:.2f} | "
                f"{np.stack(found[precision]).mean():.5f} | "
                f"{change:+.2e} [{low:+.2e}, {high:+.2e}] |"
            )
    return lines


def interval(
    differences: NDArray[np.float64], users: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Mean of [seeds, N] and its 95 % interval over users and seeds."""
    count = users.max() + 1
    by_user = np.stack([np.bincount(users, one, count) for one in differences])
    draw = np.random.default_rng(1)
    means = []
    for _ in range(DRAWS):
        weights = np.bincount(draw.integers(count, size=count), minlength=count)
        means.append((by_user[draw.integers(len(by_user), size=len(by_user))] @ weights).mean())
    low, high = np.quantile(means, [0.025, 0.975]) / differences.shape[1]
    return float(differences.mean()), float(low), float(high)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="projects with data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--report", type=Path, help="where the Markdown goes, too")
    options = parser.parse_args()
    title = "Tables of fewer bits: what they cost"
    head = machine_lines(title, "python -m bench.serving.precision RUN ...", {})
    with TemporaryDirectory() as scratch:
        table = [
            line
            for run in options.runs
            for line in lines_of(run.absolute(), options.seeds, Path(scratch) / run.name)
        ]
    about = [
        f"Plain students of the default shape, {len(options.seeds)} seeds, trained on all windows",
        "but the last and judged on it. The change of NE is paired by row; its 95 % interval is",
        "over users and seeds. MiB: of the tables.",
    ]
    columns = [
        "| run | student | rows | tables | MiB | NE | change of NE |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    print_table(head, about, [*columns, *table], options.report)


if __name__ == "__main__":
    main()
