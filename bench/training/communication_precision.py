"""What do fewer bits on the wire cost in quality? The teacher of params/, several seeds a recipe.

    python -m bench.training.communication_precision --write
    python -m bench.training.communication_precision --real-logs /path/to/logs \\
        --work /tmp/precision --write

Trains the teacher by progressive validation on the generated stream, and with --real-logs on
EB-NeRD too, once a recipe and seed, alternating. Prints NE and AUC over the evaluation windows
(size-weighted), their paired differences to fp32 with a t interval over seeds, and the bytes that
the ranks' TCP connections carry in a training step. --work keeps windows and results, and a second
call goes on from them.
"""

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.shared.progressive import headline
from bench.shared.report import print_report
from bench.shared.wire import sent_bytes
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.distill.teacher import teacher_engine, train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.evaluation.settings import EvaluateSettings
from recsys.models.partition_file import PARTITION_FILE, Partition
from recsys.sharding.settings import CommunicationSettings
from recsys.towers.probe import learn_partition
from recsys.towers.settings import TowersSettings
from recsys.training import ranks
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings
from tasks.teacher_settings import load_teacher

PARAMS = Path("params")
REPORT = Path("docs/benchmarks/communication_precision.md")
BASELINE = "fp32 / fp32 / fp32"
RECIPES = (
    BASELINE,
    "fp16 / bf16 / bf16",
    "bf16 / bf16 / bf16",
    "int8 / bf16 / bf16",
    "fp16 / fp16 / fp16",
)
COUNTED_STEPS = 20
CONFIDENCE = 0.95
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu")
HEADER = (
    "| forward / backward / gradients | NE | difference to fp32 | AUC | difference to fp32 | KB a "
    "step | of fp32 |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


def train_settings(recipe: str) -> TrainSettings:
    """params/train.yaml with a recipe of RECIPES."""
    train = load_settings(PARAMS / "train.yaml", TrainSettings)
    forward, backward, gradients = recipe.split(" / ")
    communication = {"forward": forward, "backward": backward, "gradients": gradients}
    return train.model_copy(
        update={"communication": CommunicationSettings.model_validate(communication)}
    )


def prepare(folder: Path, dataset: str, root: Path | None) -> None:
    """Windows and partition of ``dataset``, unless ``folder`` holds them."""
    if (folder / "partition" / PARTITION_FILE).exists():
        return
    for name in ("windows", "oracle", "partition"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    data = load_settings(PARAMS / "data.yaml", DataSettings)
    data = data.model_copy(
        update={"dataset": dataset} | ({"root": str(root)} if root is not None else {})
    )
    described = load_settings(PARAMS / f"datasets/{dataset}.yaml", DatasetSettings)
    ingest(data, described, folder / "windows", folder / "oracle")
    partition = load_settings(PARAMS / "towers.yaml", TowersSettings).partition
    learn_partition(folder / "windows", partition, train_settings(BASELINE), folder / "partition")


def quality(folder: Path, recipe: str, seed: int) -> tuple[float, float]:
    """NE and AUC of one teacher over the evaluation windows."""
    teacher, _ = load_teacher(PARAMS)
    teacher = teacher.model_copy(update={"seed": seed, "snapshot_every_windows": 10**9})
    judge = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    with tempfile.TemporaryDirectory() as output:
        partition_file = folder / "partition" / PARTITION_FILE
        job = TrainingJob(
            folder / "windows", teacher, train_settings(recipe), Path(output), partition_file
        )
        history = train_teacher(job)
    return headline(history, judge.first_evaluation_window)


def step_bytes(folder: Path, recipe: str) -> float:
    """Bytes that all ranks together send in a training step of the teacher; a mean."""
    train = train_settings(recipe)
    return sum(run_on_ranks(_count_rank, (folder, train), train.world_size, train.threads_per_rank))


def _count_rank(folder: Path, train: TrainSettings) -> float:
    reader = WindowReader(folder / "windows")
    teacher, _ = load_teacher(PARAMS)
    partition = Partition.load(folder / "partition" / PARTITION_FILE)
    engine = teacher_engine(reader.schema, partition, teacher, train)
    batches = reader.label_batches(
        reader.windows[1], train.global_batch_size, ranks.rank(), train.world_size
    )
    step = partial(engine.train_step, loss_function=engine.serving_loss)
    step(next(batches))  # opens the connections
    before = sent_bytes()
    for batch in islice(batches, COUNTED_STEPS):
        step(batch)
    return (sent_bytes() - before) / COUNTED_STEPS


def measure(folder: Path, seeds: list[int]) -> dict[str, dict[str, list[float]]]:
    """By recipe: NE and AUC per seed, and bytes per step; kept in ``folder`` as they are found."""
    kept = folder / "results.json"
    found: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    for recipe in RECIPES:
        if "bytes" not in found.setdefault(recipe, {}):
            found[recipe]["bytes"] = [step_bytes(folder, recipe)]
    for seed in seeds:
        for recipe in RECIPES:
            if str(seed) not in found[recipe]:
                found[recipe][str(seed)] = list(quality(folder, recipe, seed))
                kept.write_text(json.dumps(found, indent=1))
                print(
                    f"{folder.name}: seed {seed}, {recipe}: {found[recipe][str(seed)]}", flush=True
                )
    return found


def table(found: dict[str, dict[str, list[float]]], seeds: list[int]) -> list[str]:
    """Markdown rows of one data set."""
    # [S, 2]
    values = {recipe: np.array([one[str(seed)] for seed in seeds]) for recipe, one in found.items()}
    rows = [HEADER]
    for recipe, one in values.items():
        sent, whole = found[recipe]["bytes"][0], found[BASELINE]["bytes"][0]
        differences = ["", ""]
        if recipe != BASELINE:
            differences = [interval((one - values[BASELINE])[:, metric]) for metric in range(2)]
        cells = [
            f"{one[:, 0].mean():.5f}",
            differences[0],
            f"{one[:, 1].mean():.5f}",
            differences[1],
        ]
        rows.append(f"| {recipe} | {' | '.join(cells)} | {sent / 1000:.0f} | {sent / whole:.2f} |")
    return rows


def interval(differences: NDArray[np.float64]) -> str:
    """Mean of paired differences [S] and their t interval."""
    mean, error = differences.mean(), stats.sem(differences)
    reach = error * stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    return f"{mean:+.5f} [{mean - reach:+.5f}, {mean + reach:+.5f}]"


def report(tables: dict[str, list[str]], seeds: list[int]) -> str:
    """The Markdown of docs/benchmarks."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    train = train_settings(BASELINE)
    lines = [
        "# Fewer bits on the wire",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, {versions}, "
        f"{train.world_size} gloo ranks, batches of {train.global_batch_size}, the teacher of "
        f"params/.",
        "",
        "    python -m bench.training.communication_precision --real-logs /path/to/logs --write",
        "",
        f"Progressive validation, means over seeds {', '.join(map(str, seeds))}; differences are "
        f"paired by seed, with "
        f"{CONFIDENCE:.0%} t intervals. A step's bytes are what the kernel counted on all ranks' "
        f"connections, "
        "ids and headers included.",
    ]
    for name, rows in tables.items():
        lines += ["", f"## {name}", "", *rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure, print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--real-logs", type=Path, help="folder of ebnerd_demo")
    parser.add_argument("--work", type=Path, help="folder that keeps windows and results")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    given = parser.parse_args()
    datasets: dict[str, Path | None] = {"synthetic": None}
    if given.real_logs is not None:
        datasets["ebnerd_demo"] = given.real_logs
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        tables = {}
        for name, root in datasets.items():
            prepare(work / name, name, root)
            tables[name] = table(measure(work / name, given.seeds), given.seeds)
    text = report(tables, given.seeds)
    print_report(text, REPORT if given.write else None)


if __name__ == "__main__":
    main()
