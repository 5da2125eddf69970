"""Bytes written and kept, and how long a save stalls training: full, differential and quantised
checkpoints.

    python -m bench.training.checkpoints             # about three minutes; reads data/windows
    python -m bench.training.checkpoints --write     # and docs/benchmarks/checkpoints.md

Tables of 10^6 rows x 64 on one rank, ids by a power law. What Check-N-Run (NSDI 2022) reports: 6-17
times fewer bytes written and 2.5-8 times fewer kept, with differential and quantised checkpoints
together.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bench.shared.power_law import power_law
from bench.shared.report import machine_lines, print_report
from recsys.config import load_settings
from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import CategoricalFeature, Schema
from recsys.distill.teacher import load_partition, teacher_engine
from recsys.distill.teacher_settings import TeacherSettings
from recsys.evaluation.settings import EvaluateSettings
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.progress import RowProgress
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import Quantisation, TrainSettings
from recsys.validation.progressive import DataView, predict_then_train

PARAMS = Path("params")
REPORT = Path("docs/benchmarks/checkpoints.md")
ROWS, DIMENSION, TABLES, BATCH, SEED = 1_000_000, 64, 2, 4096, 1
INTERVALS = [8, 32, 128]  # batches between two saves
STALL_INTERVAL = 128
FULL_EVERY = 6  # saves a cycle: one full one, then differential ones
KEEP = 2
REPEATS = 1  # of the stalls
MEGA = 1e6
INTRODUCTION = f"""
{TABLES} tables of {ROWS:,} rows x {DIMENSION}, row-wise AdaGrad, one rank, {BATCH} examples
per batch, ids by a power law. A cycle is {FULL_EVERY} saves: all full, or one full and
{FULL_EVERY - 1} differential ones, each of every row trained on since it (Check-N-Run's one-shot
kind). Quantised means table weights in both. `keep_checkpoints` is {KEEP}, besides the full one
that they need.
Check-N-Run (NSDI 2022) reports 6-17 times fewer bytes written and 2.5-8 times fewer kept, with both
together, 30 minutes apart. Stalls: {STALL_INTERVAL} batches between saves; the run is one cycle
with the wait for its last write. NE: the teacher of params/ without towers on one rank; it resumes
from the checkpoint where the evaluation windows begin. Sections may come from several runs of the
command.
""".splitlines()
MODEL = ModelSettings(
    embedding_dimension=DIMENSION, dense_layers=[DIMENSION], over_layers=[64], towers=False
)
TRAIN = TrainSettings(world_size=1, global_batch_size=BATCH, sharding="table_wise", memory_gb=2.0)


@dataclass(frozen=True)
class Kind:
    """One way to checkpoint."""

    full_every: int = 1
    quantisation: Quantisation = "none"
    asynchronously: bool = False


FULL = "full"
KINDS = {
    FULL: Kind(),
    "differential": Kind(FULL_EVERY),
    "differential fp16": Kind(FULL_EVERY, "fp16"),
    "differential int8": Kind(FULL_EVERY, "int8"),
}
STALLS = {
    FULL: KINDS[FULL],
    "full, asynchronous": Kind(asynchronously=True),
    "differential": KINDS["differential"],
    "differential, asynchronous": Kind(FULL_EVERY, asynchronously=True),
}


def batches(count: int) -> Iterator[Batch]:
    """Seeded batches of BATCH rows."""
    draw, noise = np.random.default_rng(SEED), torch.Generator().manual_seed(SEED)
    names = [f"c{position}" for position in range(TABLES)]
    ids, lengths = torch.arange(BATCH), torch.ones(TABLES * BATCH, dtype=torch.int64)
    for _ in range(count):
        values = torch.from_numpy(np.concatenate([power_law(draw, ROWS, BATCH) for _ in names]))
        yield Batch(
            dense=torch.randn(BATCH, schema().dense_width, generator=noise),
            sparse=KeyedJaggedTensor(names, values, lengths=lengths),
            label=torch.randint(0, 2, (BATCH,), generator=noise).float(),
            weight=torch.ones(BATCH),
            domain=torch.zeros_like(ids),
            group=ids,
            example_id=ids,
            event_time=ids,
            score=torch.full((BATCH,), float("nan")),
            staleness_ms=torch.zeros(BATCH, dtype=torch.int64),
            global_rows=BATCH,
        )


def schema() -> Schema:
    """Two numbers and TABLES ids."""
    features = [CategoricalFeature(f"c{position}", ROWS) for position in range(TABLES)]
    return Schema("checkpoints", ["n0", "n1"], features, ["all"], [], 0.5, {})


def train_and_save(kind: Kind, interval: int, folder: Path) -> dict[str, Any]:
    """A cycle of FULL_EVERY saves, ``interval`` batches apart: bytes of each, the most kept,
    stalls, all seconds."""
    engine = Engine(build_ranker(schema(), MODEL, None, SEED, "meta"), TRAIN, SEED)
    checkpoints = Checkpoints(
        folder, "run", KEEP, interval, kind.asynchronously, kind.full_every, kind.quantisation
    )
    stalls, sizes, kept = [], {}, 0
    checkpoints.restore(engine)
    started = perf_counter()
    with checkpoints.writing():
        for step, batch in enumerate(batches(interval * FULL_EVERY), start=1):
            engine.train_step(batch, engine.serving_loss)
            if checkpoints.due(step):
                before = perf_counter()
                checkpoints.save(engine, Position(batches=step))
                stalls.append(perf_counter() - before)
                found = {
                    path.name: folder_bytes(path)
                    for path in folder.glob("*-*")
                    if path.suffix != ".partial"
                }
                sizes |= found
                kept = max(kept, sum(found.values()))
    return {
        "sizes": list(sizes.values()),
        "kept": kept,
        "stalls": stalls,
        "seconds": perf_counter() - started,
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in ``folder``."""
    return sum(path.stat().st_size for path in folder.iterdir())


def touched(interval: int) -> tuple[float, float]:
    """Shares of the rows touched in one interval, and in all since the full one at the last save of
    a cycle."""
    ids = [
        batch.sparse.values().view(TABLES, BATCH) for batch in batches(interval * (FULL_EVERY - 1))
    ]
    last, all_ids = torch.cat(ids[-interval:], 1), torch.cat(ids, 1)
    one, since = (
        sum(len(table.unique()) for table in found) / (TABLES * ROWS) for found in (last, all_ids)
    )
    return one, since


def measure(kind: Kind, interval: int, work: Path) -> dict[str, Any]:
    """:func:`train_and_save` in a fresh folder of ``work``."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return run_on_ranks(train_and_save, (kind, interval, Path(folder)), 1, 1)[0]


def size_lines(work: Path, _: Path) -> list[str]:
    """The table of bytes."""
    lines = [
        "| batches between saves | rows touched in one | since the full one | kind | MB a save | "
        "written: fewer, x | "
        "MB kept | kept: fewer, x |",
        "|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    full: dict[str, Any] = {}
    for interval in INTERVALS:
        one, since = touched(interval)
        for name, kind in KINDS.items():
            found = full if name == FULL and full else measure(kind, interval, work)
            full = found if name == FULL else full
            written, kept = sum(found["sizes"]) / FULL_EVERY, found["kept"]
            fewer = sum(full["sizes"]) / FULL_EVERY / written, full["kept"] / kept
            lines.append(
                f"| {interval} | {one:.1%} | {since:.1%} | {name} | {written / MEGA:.0f} | "
                f"{fewer[0]:.1f} "
                f"| {kept / MEGA:.0f} | {fewer[1]:.1f} |"
            )
            print(lines[-1], flush=True)
    return lines


def stall_lines(work: Path, _: Path) -> list[str]:
    """The table of stalls; kinds alternate over the repeats."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in STALLS}
    for _repeat in range(REPEATS):
        for name, kind in STALLS.items():
            found[name].append(measure(kind, STALL_INTERVAL, work))
            print(name, [round(stall, 3) for stall in found[name][-1]["stalls"]], flush=True)
    lines = [
        "| kind | stall of the first, full save, s | of a later one, median s | whole run, s |",
        "|---|---:|---:|---:|",
    ]
    for name, runs in found.items():
        first = median(run["stalls"][0] for run in runs)
        later = median(stall for run in runs for stall in run["stalls"][1:])
        lines.append(
            f"| {name} | {first:.2f} | {later:.3f} | {median(run['seconds'] for run in runs):.1f} |"
        )
    return lines


def stream_quality(windows: Path, folder: Path, quantisation: Quantisation) -> dict[str, float]:
    """NE of the params' teacher without towers, undisturbed and from a restore in the middle of the
    data."""
    settings = load_settings(PARAMS / "teacher.yaml", TeacherSettings)
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"towers": False})}
    )
    train = load_settings(PARAMS / "train.yaml", TrainSettings).model_copy(update={"world_size": 1})
    first = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings).first_evaluation_window
    reader, ne = WindowReader(windows), {}
    (folder / "checkpoints").mkdir(parents=True)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        "run",
        len(reader.schema.windows) + 1,
        None,
        False,
        FULL_EVERY,
        quantisation,
    )
    for name in ("undisturbed", "restored"):
        engine = teacher_engine(
            reader.schema, load_partition(None, settings.model), settings, train
        )
        data = DataView(reader, train.global_batch_size)
        with RowProgress(name, data.predicted(), enabled=False) as progress:
            rows = predict_then_train(
                engine, engine.serving_loss, data, folder, progress, None, checkpoints
            )[first:]
        ne[name] = float(
            np.average([row["ne"] for row in rows], weights=[row["rows"] for row in rows])
        )
        for path in sorted((folder / "checkpoints").iterdir())[first:]:
            shutil.rmtree(path)  # the next one goes on where the evaluation windows begin
    return ne


def quality_lines(work: Path, windows: Path) -> list[str]:
    """The table of NE."""
    lines = [
        "| checkpoints | NE undisturbed | NE, gone on from one in the middle | change |",
        "|---|---:|---:|---:|",
    ]
    for quantisation in ("none", "fp16", "int8"):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            ne = run_on_ranks(stream_quality, (windows, Path(folder), quantisation), 1, 1)[0]
        change = ne["restored"] - ne["undisturbed"]
        lines.append(
            f"| {quantisation} | {ne['undisturbed']:.6f} | {ne['restored']:.6f} | {change:+.1e} |"
        )
    return lines


def main() -> None:
    """Measure, print, and write the report where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    parser.add_argument("--windows", type=Path, default=Path("data/windows"), help="of NE")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others stay as written"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {part: PARTS[part](Path(folder), given.windows) for part in given.parts}
    text = report({f"## {part}": lines for part, lines in found.items()})
    print_report(text, REPORT if given.write else None)


def report(found: dict[str, list[str]]) -> str:
    """The Markdown: what was found, and of the report on disk the sections that were not measured
    now."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}
    lines = (
        machine_lines("Checkpoints", "python -m bench.training.checkpoints --write", threads)
        + INTRODUCTION
    )
    kept = REPORT.read_text().split("\n## ")[1:] if REPORT.exists() else []
    before = {
        f"## {section.split(chr(10), 1)[0]}": section.strip().splitlines()[2:] for section in kept
    }
    for part in PARTS:
        title = f"## {part}"
        section = found.get(title) or before.get(title)
        lines += ["", title, "", *section] if section else []
    return "\n".join(lines) + "\n"


PARTS = {"Stalls": stall_lines, "Bytes": size_lines, "NE": quality_lines}

if __name__ == "__main__":
    main()
