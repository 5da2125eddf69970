"""Do towers cost accuracy? Flat, transform-only and DMT rankers by progressive validation.

    towerflow ingest --set data.dataset=ebnerd_demo --set data.root=/path/to/logs
    python -m bench.towers.quality --windows data/windows --name EB-NeRD --results ebnerd.json \\
        --minutes 4
    python -m bench.towers.quality --write --results stream.json ebnerd.json globo.json

The first call of each log goes on where the last one stopped, until every model has every seed; the
last prints the tables. Every seed has its own initial weights, probe and partition. Towers: the
coherent partition of a probe that is trained on the windows before those that judge. A difference
is paired by seed: same initial tables, same batches.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.shared.progressive import (
    MORE_TO_DO,
    Results,
    Rows,
    fill,
    half_width,
    read_rows,
    resumable_parser,
    shown,
    train_settings,
    validate_progressively,
)
from bench.shared.report import machine_lines
from bench.towers.planted_groups import RECIPES
from recsys.config import load_settings
from recsys.figures import figure_of
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.towers.partitioner import partition_by_affinity
from recsys.towers.probe import train_probe
from recsys.towers.settings import TowersSettings
from recsys.training.launch import launch

PARAMS = Path("params")
COLUMNS = ["AUC", "to flat", "NE", "to flat", "CR", "MFLOP/sample", "parameters"]
NOTES = [
    "Predictions are made before training on them and pooled. Cells are medians (standard",
    "deviation) over seeds. *To flat* is the mean difference from the flat model with the",
    "same seed, ± a 95 % t interval, in bold where the interval excludes 0. There is no",
    "correction for the number of rows: of twenty models without an effect, one is bold. CR",
    "is the numbers in all embeddings over those in all tower outputs: the bytes that cross",
    "hosts shrink by this factor. MFLOP is for a training step, by recsys/models/cost.py.",
    "",
    "Embeddings have width 16. DLRM's towers use the short over arch, which matches the",
    "paper's FLOPs (the paper does not say so); the flat model with that arch separates the",
    "two effects. DCN's towers keep the full over arch. Nothing was tuned for any of them.",
    "Everything runs on one rank with replicated tower modules. *Transform only* means",
    "pass-through towers there; tests/distributed/test_tower_transform.py checks that moving",
    "them between hosts changes nothing. Towers are the coherent partition of the",
    "factorization probe after three epochs, which is not the default of params/towers.yaml.",
]
REPORT = Path("docs/benchmarks/towers_quality.md")
FIGURE = Path("docs/images/towers_quality.png")
SIZE_INCHES = (10, 8)
Found = dict[str, list[dict[str, Any]]]  # by architecture/model: a result a seed
Logs = dict[str, tuple[dict[str, Any], Found]]  # by name: facts, results
DIMENSION = 16
THREADS = "OMP_NUM_THREADS"
FEWEST_SEEDS = 3  # of a row of the table
PROBE = {**RECIPES["factorization"], "balance_ratio": 2.0, "probe_epochs": 3}
FLAT, SHORT, TRANSFORM = "flat", "flat, short over arch", "transform only"
OVER, SHORT_OVER = [128, 128, 64], [128, 64]
SHAPES: dict[str, dict[str, Any]] = {
    "dlrm": {"architecture": "dlrm"},
    "dcn": {"architecture": "dcn", "cross_layers": 2, "cross_rank": 32},
}


@dataclass(frozen=True)
class Model:
    """One row: an architecture, a tower count (0: flat), the compression asked for, and the over
    arch."""

    architecture: str
    kind: str
    towers: int = 0
    compression: int = 1

    @property
    def name(self) -> str:
        """As in the table."""
        if self.kind != "dmt":
            return self.kind
        return f"{self.towers}T, CR {self.compression}"

    def settings(self, features: int) -> ModelSettings:
        """Its model; DLRM's towers come with the short over arch, as the paper's FLOPs say, DCN's
        with the whole."""
        short = self.kind == SHORT or (self.kind == "dmt" and self.architecture == "dlrm")
        base = {**SHAPES[self.architecture], "over_layers": SHORT_OVER if short else OVER}
        if self.kind == TRANSFORM:
            base |= {"towers": True, "tower_module": {"kind": "pass_through"}}
        if self.kind == "dmt":
            base |= {"towers": True, "tower_dimension": self._tower_dimension(features)}
        return ModelSettings.model_validate(
            {**base, "embedding_dimension": DIMENSION, "dense_layers": [64, 32]}
        )

    def _tower_dimension(self, features: int) -> int:
        """D = N / CR of DLRM's vector per feature; F N / (T CR) of DCN's vector per tower."""
        width = DIMENSION if self.architecture == "dlrm" else features * DIMENSION / self.towers
        return max(1, round(width / self.compression))


def models(features: int) -> list[Model]:
    """The rows of the table: every tower count with every compression."""
    counts = [count for count in (2, 4, 8) if count < features] + [features]
    pairs = [(count, compression) for count in counts for compression in (1, 2, 4, 8)]
    rows = []
    for architecture in SHAPES:
        rows += [Model(architecture, FLAT), Model(architecture, SHORT)]
        rows += [Model(architecture, TRANSFORM, counts[1])]
        # A DCN tower of one feature is not projected: with one feature a tower there is nothing to
        # compress.
        chosen = [pair for pair in pairs if architecture == "dlrm" or pair[0] < features]
        rows += [Model(architecture, "dmt", *pair) for pair in chosen]
        if architecture == "dcn":
            rows.append(Model(architecture, "dmt", features, 1))
    return rows


def read(files: list[Path]) -> Logs:
    """What the files hold, by the name of the log."""
    logs: Logs = {}
    for file in files:
        values = Results(file).values
        _, found = logs.setdefault(values["facts"]["name"], (values["facts"], {}))
        for key, one in values.items():
            if key.count("/") == 2:
                found.setdefault(key.rpartition("/")[0], []).append(
                    {**one, "seed": int(key.rpartition("/")[2])}
                )
    return logs


def report(logs: Logs) -> str:
    """The tables of all logs, in Markdown."""
    command = "python -m bench.towers.quality --write --results stream.json ebnerd.json globo.json"
    lines = [
        *machine_lines("Quality of towers", command, {THREADS: os.environ.get(THREADS, "unset")}),
        "",
        *NOTES,
        "",
        f"![AUC minus the flat model's, by log and model](../images/{FIGURE.name})",
    ]
    for about, found in logs.values():
        lines += ["", *log_lines(about, found)]
    return "\n".join(lines) + "\n"


def log_lines(about: dict[str, Any], found: Found) -> list[str]:
    """Title and one row per model, its differences to the flat model of the same architecture and
    seed."""
    lines = [
        f"## {about['name'][0].upper()}{about['name'][1:]}",
        "",
        f"{about['rows']:,} rows, {len(about['features'])} features; the last "
        f"{about['judged_rows']:,} rows judge, the "
        f"probe has the {about['probe_windows']} windows before them; batch {about['batch']}.",
        "",
        f"| model | seeds | {' | '.join(COLUMNS)} |",
        "|---|---:|" + "---:|" * len(COLUMNS),
    ]
    for architecture in SHAPES:
        flat = flat_of(found, architecture)
        for model, ones in measured(about, found, architecture):
            cells = [
                f"{architecture.upper()} {model.name}",
                str(len(ones)),
                *row(ones, flat, model.kind == FLAT),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def measured(
    about: dict[str, Any], found: Found, architecture: str
) -> list[tuple[Model, list[dict[str, Any]]]]:
    """The models of an architecture that have seeds enough, in the table's order."""
    chosen = [
        model for model in models(len(about["features"])) if model.architecture == architecture
    ]
    pairs = [(model, found.get(f"{architecture}/{model.name}", [])) for model in chosen]
    return [(model, ones) for model, ones in pairs if len(ones) >= FEWEST_SEEDS]


def flat_of(found: Found, architecture: str) -> dict[int, dict[str, Any]]:
    """The flat model's results by seed."""
    return {one["seed"]: one for one in found.get(f"{architecture}/{FLAT}", [])}


def row(ones: list[dict[str, Any]], flat: dict[int, dict[str, Any]], is_flat: bool) -> list[str]:
    """The cells of COLUMNS: medians (standard deviation) and paired differences with their
    intervals."""
    cells = []
    for metric in ("auc", "ne"):
        values = [one[metric] for one in ones]
        cells.append(f"{np.median(values):.4f} ({np.std(values, ddof=1):.4f})")
        cells.append("" if is_flat else shown(paired(ones, flat, metric)))
    first = ones[0]
    compression = np.median([one["compression"] for one in ones])
    return [
        *cells,
        f"{compression:.3g}",
        f"{first['mflop']:.3f}",
        f"{np.median([o['parameters'] for o in ones]):,.0f}",
    ]


def paired(
    ones: list[dict[str, Any]], flat: dict[int, dict[str, Any]], metric: str
) -> NDArray[np.float64]:
    """Differences to the flat model of the same seed."""
    return np.array(
        [one[metric] - flat[one["seed"]][metric] for one in ones if one["seed"] in flat]
    )


def draw(logs: Logs) -> None:
    """Differences in AUC to the flat model, with their intervals: a panel a log and
    architecture."""
    with figure_of(FIGURE, SIZE_INCHES) as figure:
        panels = figure.subplots(len(logs), len(SHAPES), squeeze=False, sharey="row")
        for axes_row, (about, found) in zip(panels, logs.values(), strict=True):
            for axes, architecture in zip(axes_row, SHAPES, strict=True):
                flat = flat_of(found, architecture)
                rows = [
                    (model, ones)
                    for model, ones in measured(about, found, architecture)
                    if model.kind != FLAT
                ]
                values = [paired(ones, flat, "auc") for _, ones in rows]
                means, halves = [one.mean() for one in values], [half_width(one) for one in values]
                axes.errorbar(range(len(rows)), means, yerr=halves, fmt="o", capsize=3)
                axes.axhline(0.0, color="grey", linewidth=1)
                axes.set_xticks(
                    range(len(rows)), [model.name for model, _ in rows], rotation=60, ha="right"
                )
                axes.set_title(f"{about['name']}, {architecture.upper()}")
            axes_row[0].set_ylabel("AUC minus flat")


def work(given: argparse.Namespace, results: Results) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is to be measured, in order: a seed after the other."""
    rows = read_rows(given.windows, given.batch, given.first_window + given.judged_windows)
    features = [feature.name for feature in rows.schema.categorical]
    results.get("facts", lambda: facts(given, rows))
    for seed in given.seeds:
        for model in models(len(features)):
            if model.architecture in given.architectures:
                yield (
                    f"{model.architecture}/{model.name}/{seed}",
                    partial(measure, model, seed, rows, given, results),
                )


def facts(given: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    """What the report says of a log."""
    judged = rows.predicted[given.first_window :]
    return {
        "name": given.name,
        "features": [feature.name for feature in rows.schema.categorical],
        "batch": given.batch,
        "probe_windows": given.first_window,
        "rows": sum(batch.global_rows for window in rows.predicted for batch in window),
        "judged_rows": sum(batch.global_rows for window in judged for batch in window),
    }


def measure(
    model: Model, seed: int, rows: Rows, given: argparse.Namespace, results: Results
) -> dict[str, float]:
    """NE, AUC and cost of one model and seed."""
    features = len(rows.schema.categorical)
    partition = partition_of(model.towers, seed, given, results) if model.towers else None
    train = train_settings(given.batch)
    ranker = build_ranker(
        rows.schema, model.settings(features), partition, seed, table_device="meta"
    )
    cost = ranker_cost(ranker)
    compression = features * DIMENSION / ranker.interaction.width
    found = validate_progressively(ranker, rows, train, seed, given.first_window)
    return {
        "ne": found["ne"],
        "auc": found["auc"],
        "mflop": cost.flops / 1e6,
        "dense_parameters": cost.dense_parameters,
        "parameters": cost.parameters,
        "compression": compression,
    }


def partition_of(towers: int, seed: int, given: argparse.Namespace, results: Results) -> Partition:
    """The coherent partition of this seed's probe, which has seen the windows before those that
    judge."""
    settings = load_settings(PARAMS / "towers.yaml", TowersSettings).partition
    update = {
        **PROBE,
        "strategy": "coherent",
        "towers": towers,
        "seed": seed,
        "probe_windows": given.first_window,
    }
    settings = settings.model_copy(update=update)
    train = train_settings(given.batch)
    affinity = results.get(
        f"affinity/{seed}", lambda: train_probe(given.windows, settings, train).tolist()
    )
    return partition_by_affinity(results.values["facts"]["features"], np.array(affinity), settings)


def main() -> None:
    """Read the command line; measure, or print and write."""
    parser = resumable_parser(__doc__, several_results=True)
    parser.add_argument("--windows", type=Path, help="a windows folder, to measure on")
    parser.add_argument("--name", default="the generated stream", help="of the log")
    parser.add_argument(
        "--first-window", type=int, default=4, help="that judges; the probe has those before"
    )
    parser.add_argument("--judged-windows", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--architectures", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT}")
    given = parser.parse_args()
    if given.windows is not None:
        whole = launch(fill, (work, given, given.results[0]), train_settings(given.batch))[0]
        print("all measured" if whole else MORE_TO_DO)
        return
    logs = read(given.results)
    print(report(logs))
    if given.write:
        REPORT.write_text(report(logs))
        draw(logs)


if __name__ == "__main__":
    main()
