"""Mean pooling against attention over a user's last clicks, by progressive validation, paired by
seed.

    python -m bench.data.sequences --work /tmp/stream --results stream.json --minutes 4
    python -m bench.data.sequences --work /tmp/ebnerd --results ebnerd.json --minutes 4 \\
        --logs /path/to/logs
    python -m bench.data.sequences --write --results stream.json ebnerd.json

The first call of each log makes its windows in --work and goes on where the last one stopped, until
every model has every seed; the last prints the tables. The generated stream has a planted effect of
the history; ``--logs`` holds ebnerd_demo.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.shared.progressive import (
    MORE_TO_DO,
    Results,
    Rows,
    fill,
    read_rows,
    resumable_parser,
    shown,
    train_settings,
    validate_progressively,
)
from bench.shared.report import machine_lines, print_report
from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.settings import (
    ClickHistorySettings,
    DatasetSettings,
    DataSettings,
    HistorySettings,
    SyntheticSettings,
    TableSettings,
    load_dataset,
)
from recsys.evaluation.metrics import compute_metrics
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.training.launch import launch

PARAMS = Path("params")
REPORT = Path("docs/benchmarks/sequences.md")
THREADS = "OMP_NUM_THREADS"
LENGTH = 20
MEAN = "mean pooling"
ATTENTION: dict[str, dict[str, Any]] = {
    "multi-head": {"attention": "multi_head", "heads": 2},
    "multi-head, shared table": {"attention": "multi_head", "heads": 2, "shares_table": True},
    "activation unit": {"attention": "activation_unit"},
    "activation unit, shared table": {"attention": "activation_unit", "shares_table": True},
}
SHAPES: dict[str, dict[str, Any]] = {
    "dlrm": {"architecture": "dlrm"},
    "dcn": {"architecture": "dcn", "cross_layers": 2, "cross_rank": 32},
}
BASE: dict[str, Any] = {
    "embedding_dimension": 16,
    "dense_layers": [64, 32],
    "over_layers": [128, 64],
}
STREAM = {"rows": 480_000, "users": 2_000, "ads": 500}
BASE_RATES = 3.0  # times those of params: few users with many clicks, so that there are histories
EFFECT = ClickHistorySettings(length=LENGTH, strength=2.0, dimension=8)
EBNERD = HistorySettings(user="user_id", item="candidate", length=LENGTH, table_rows=20_000)
TARGETS = {"synthetic_sparse": "ad_id", "ebnerd_demo": "candidate"}
NOTES = [
    "Each window is predicted before training on it; the second half of the windows is evaluated, "
    "pooled. One rank.",
    "Medians over seeds; *to mean*: mean of the differences to mean pooling with the same seed "
    "(same initial weights",
    "but for the attention, same batches), ± a 95 % t interval, bold where it leaves 0 out; no "
    "correction for the",
    "number of rows. FLOPs: per training step and example. Nothing was tuned for any of them. "
    "Attention has more weights",
    "than a mean has; the two are not told apart. The history: the last 20 clicks whose label was "
    "known before the",
    "event. The generated stream: 2,000 users, 500 ads, base rates three times those of",
    "params/datasets/synthetic_sparse.yaml, and a logit of 2 times the largest cosine between the "
    "ad and the clicks of the",
    "history, of planted vectors of 8 numbers (`synthetic.history`).",
]


def dataset_of(logs: Path | None) -> tuple[DataSettings, DatasetSettings]:
    """The log to measure on, with histories: the generated stream, or EB-NeRD under ``logs``."""
    data = load_settings(PARAMS / "data.yaml", DataSettings)
    name = "synthetic_sparse" if logs is None else "ebnerd_demo"
    data = data.model_copy(update={"dataset": name, "root": str(logs or data.root)})
    dataset = load_dataset(data, PARAMS / "datasets")
    section = dataset.synthetic or dataset.table
    assert section is not None
    update: dict[str, Any] = {"history": EBNERD}
    if isinstance(section, SyntheticSettings):
        rates = [
            d.model_copy(update={"base_rate": BASE_RATES * d.base_rate}) for d in section.domains
        ]
        update = {**STREAM, "domains": rates, "history": EFFECT}
    changed: SyntheticSettings | TableSettings = section.model_copy(update=update)
    return data, dataset.model_copy(update={dataset.format: changed})


def work(given: argparse.Namespace, results: Results) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is to be measured, in order: a seed after the other."""
    windows_dir, oracle_dir = given.work / "windows", given.work / "oracle"
    data, dataset = dataset_of(given.logs)
    if not windows_dir.is_dir():
        ingest(data, dataset, windows_dir, oracle_dir)
    rows = read_rows(windows_dir, given.batch, None)
    first_window = len(rows.predicted) // 2
    results.get("facts", lambda: facts(rows, first_window, given.batch, windows_dir, oracle_dir))
    for seed in given.seeds:
        for architecture in SHAPES:
            for name in (MEAN, *ATTENTION):
                key = f"{architecture}/{name}/{seed}"
                yield (
                    key,
                    partial(measure, architecture, name, seed, rows, first_window, given.batch),
                )


def facts(
    rows: Rows, first_window: int, batch: int, windows_dir: Path, oracle_dir: Path
) -> dict[str, Any]:
    """What the report says of a log, with the true probabilities' NE and AUC where they are
    known."""
    judged = rows.predicted[first_window:]
    places = [
        (one.sparse["history"].lengths(), one.global_rows) for window in judged for one in window
    ]
    found = {
        "name": rows.schema.dataset,
        "batch": batch,
        "rows": sum(one.global_rows for window in rows.predicted for one in window),
        "judged_rows": sum(count for _, count in places),
        "mean_length": sum(float(lengths.sum()) for lengths, _ in places)
        / sum(count for _, count in places),
        "without": sum(int((lengths == 0).sum()) for lengths, _ in places)
        / sum(count for _, count in places),
    }
    names = [window.name for window in WindowReader(windows_dir).windows[first_window:]]
    if not list(oracle_dir.glob("*.parquet")):
        return found
    examples = pl.concat([pl.read_parquet(windows_dir / name / "part-*.parquet") for name in names])
    truth = pl.concat([pl.read_parquet(oracle_dir / f"{name}.parquet") for name in names])
    known = examples.select("example_id", "label", "group").join(truth, on="example_id")
    probability = known["probability"].to_numpy()
    logit = np.log(probability / (1 - probability))
    best = compute_metrics(logit, known["label"].to_numpy(), known["group"].to_numpy())
    return found | {"oracle": {"ne": best.ne, "auc": best.auc}}


def measure(
    architecture: str, name: str, seed: int, rows: Rows, first_window: int, batch: int
) -> dict[str, float]:
    """NE, AUC and FLOPs of one model and seed."""
    sequence = {"target": TARGETS[rows.schema.dataset], "length": LENGTH}
    sequences = {} if name == MEAN else {"history": sequence | ATTENTION[name]}
    model = ModelSettings.model_validate({**BASE, **SHAPES[architecture], "sequences": sequences})
    ranker = build_ranker(rows.schema, model, None, seed, table_device="meta")
    flops = ranker_cost(ranker).flops
    found = validate_progressively(ranker, rows, train_settings(batch), seed, first_window)
    return {"ne": found["ne"], "auc": found["auc"], "gauc": found["gauc"], "flops": flops}


def report(files: list[Path]) -> str:
    """The tables of all logs, in Markdown."""
    command = (
        f"python -m bench.data.sequences --write --results {' '.join(file.name for file in files)}"
    )
    lines = [
        *machine_lines("Sequences", command, {THREADS: os.environ.get(THREADS, "unset")}),
        "",
        *NOTES,
    ]
    for file in files:
        lines += ["", *log_lines(Results(file).values)]
    return "\n".join(lines) + "\n"


def log_lines(values: dict[str, Any]) -> list[str]:
    """Title and one row per model."""
    about = values["facts"]
    lines = [
        f"## {about['name']}",
        "",
        f"{about['rows']:,} rows, the last {about['judged_rows']:,} are evaluated; "
        f"{about['mean_length']:.1f} clicks in a "
        f"history on average, none for {about['without']:.0%}; batch {about['batch']}.",
        "",
        "| model | seeds | NE | to mean | AUC | to mean | gAUC | to mean | FLOPs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for architecture in SHAPES:
        base = of_model(values, architecture, MEAN)
        for name in (MEAN, *ATTENTION):
            ones = of_model(values, architecture, name)
            cells = [f"{architecture.upper()} {name}", str(len(ones))]
            for metric in ("ne", "auc", "gauc"):
                differences = np.array(
                    [one[metric] - base[seed][metric] for seed, one in ones.items()]
                )
                median = np.median([one[metric] for one in ones.values()])
                cells += [f"{median:.4f}", "" if name == MEAN else shown(differences)]
            lines.append(f"| {' | '.join(cells)} | {next(iter(ones.values()))['flops']:,.0f} |")
    if "oracle" in about:
        lines.append(
            f"| true probabilities | | {about['oracle']['ne']:.4f} | | "
            f"{about['oracle']['auc']:.4f} | | | | |"
        )
    return lines


def of_model(values: dict[str, Any], architecture: str, name: str) -> dict[int, dict[str, float]]:
    """Results of a model by seed."""
    prefix = f"{architecture}/{name}/"
    return {
        int(key.removeprefix(prefix)): one for key, one in values.items() if key.startswith(prefix)
    }


def main() -> None:
    """Read the command line; measure, or print and write."""
    parser = resumable_parser(__doc__, several_results=True)
    parser.add_argument("--work", type=Path, help="folder for the windows, to measure on")
    parser.add_argument(
        "--logs", type=Path, help="folder with ebnerd_demo; without it the generated stream"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    given = parser.parse_args()
    if given.work is not None:
        whole = launch(fill, (work, given, given.results[0]), train_settings(given.batch))[0]
        print("all measured" if whole else MORE_TO_DO)
        return
    text = report(given.results)
    print_report(text, REPORT if given.write else None)


if __name__ == "__main__":
    main()
