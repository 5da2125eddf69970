"""Predicted beside measured, as Markdown and as a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from bench.planner.cases import MEMORY, Model
from bench.planner.worker import Measured
from bench.shared.report import machine_line
from recsys.planning.assess import assess, held_bytes, ways_of
from recsys.planning.hardware import Hardware, Topology
from recsys.planning.planner import Plan

REPORT = Path("docs/benchmarks/planner_validation.md")
FIGURE = Path("docs/images/planner_validation.png")
CLEAR = 2.0  # times as long: a pair whose order must be right
RIVAL = "TorchRec's planner"
TEXT = [
    "Each measurement is the engine's own training step on gloo ranks of one host. Every plan",
    "is an engine; the plans of one model share processes and train in turns, in random",
    "order. Times are medians over turns of the slowest rank. The hardware file was fitted on",
    "two ranks and other models (FITTED in bench/planner/cases.py), so these are real",
    "predictions. Ranks share cores: a step takes the slowest rank's time, or all ranks' work",
    "divided by the cores, whichever is longer.",
    "",
    "*Clear pairs* are plans of one model that are predicted to differ by more than a factor",
    'of 2. *Bytes* are the tensors of tables and their optimiser state; "equal" means on',
    "every rank, to the byte.",
    "",
    "![Predicted against measured step times, per plan](../images/planner_validation.png)",
    "",
]


@dataclass(frozen=True)
class Compared:
    """One plan of one model on some ranks: predicted beside measured."""

    model: Model
    world_size: int
    plan: str
    measured: Measured

    def predict(self, hardware: Hardware) -> Plan:
        """The prediction for the plan that the engine ran."""
        topology = Topology(
            hardware.model_copy(update={"reserved_gb": 0.0}), 1, self.world_size, 0, MEMORY, 0
        )
        planned = self.model.planned(self.world_size, self.measured.dense_parameters)
        return assess(planned, topology, ways_of(self.measured.rows, self.world_size))

    def predicted_bytes(self, hardware: Hardware) -> list[int]:
        """Bytes of tables and their state, by rank."""
        optimizer = self.model.planned(self.world_size, 0).table_optimizer
        return held_bytes(self.predict(hardware), optimizer, self.world_size)


def report_lines(cases: Sequence[Compared], hardware: Hardware) -> list[str]:
    """Agreement by number of ranks and over all, then a row a plan."""
    lines = [
        "| ranks | plans | Spearman | median error | clear pairs in order | Spearman, bytes | "
        "bytes equal |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    sizes = sorted({case.world_size for case in cases})
    groups = [
        (str(size), [case for case in cases if case.world_size == size]) for size in sizes
    ] + [("all", cases)]
    groups.append(("all, no tables copied", [case for case in cases if not _copies(case)]))
    lines += [f"| {name} | {_agreement(group, hardware)} |" for name, group in groups]
    lines += ["", *_choices(cases, hardware), ""]
    lines += [
        "| model | ranks | plan | predicted ms | measured ms | range | MB, fullest rank |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for case in cases:
        low, high = case.measured.spread_ms
        cells = [
            case.model.name,
            str(case.world_size),
            case.plan,
            f"{case.predict(hardware).step_ms:.1f}",
            f"{case.measured.ms:.1f}",
            f"{low:.1f} - {high:.1f}",
            f"{max(case.measured.bytes) / 1e6:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_report(cases: Sequence[Compared], hardware: Hardware) -> None:
    """docs/benchmarks/planner_validation.md and its figure."""
    head = [
        "# Planner: predicted against measured",
        "",
        machine_line(),
        "",
        "    python -m bench.planner.validation --write",
        "",
    ]
    REPORT.write_text("\n".join([*head, *TEXT, *report_lines(cases, hardware)]) + "\n")
    _draw(cases, hardware)


def clear_pairs(cases: Sequence[Compared], hardware: Hardware) -> tuple[int, int]:
    """Pairs of plans of one model and number of ranks predicted to differ clearly: in the right
    order, and all."""
    right = count = 0
    for fast in cases:
        for slow in cases:
            if (fast.model, fast.world_size) != (slow.model, slow.world_size):
                continue
            if slow.predict(hardware).step_ms > CLEAR * fast.predict(hardware).step_ms:
                right, count = right + (slow.measured.ms > fast.measured.ms), count + 1
    return right, count


def _copies(case: Compared) -> bool:
    return any(row["kind"] == "data_parallel" for row in case.measured.rows)


def _rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    found: Any = spearmanr(first, second)  # scipy's stubs do not know the result's fields
    return float(found.statistic)


def _agreement(cases: Sequence[Compared], hardware: Hardware) -> str:
    predicted, measured = _times(cases, hardware)
    held = [(max(case.predicted_bytes(hardware)), max(case.measured.bytes)) for case in cases]
    equal = sum(case.predicted_bytes(hardware) == case.measured.bytes for case in cases)
    right, count = clear_pairs(cases, hardware)
    error = np.median(np.abs(predicted / measured - 1))
    memory = _rank_correlation([most for most, _ in held], [most for _, most in held])
    time = _rank_correlation(predicted, measured)
    return (
        f"{len(cases)} | {time:.3f} | {error:.0%} | {right} of {count} | {memory:.3f} | "
        f"{equal} of {len(cases)}"
    )


def _choices(cases: Sequence[Compared], hardware: Hardware) -> list[str]:
    """What the plan predicted to be the fastest takes, beside TorchRec's choice and the fastest
    measured."""
    lines = [
        "| model | ranks | predicted fastest | ms | TorchRec's planner ms | fastest measured | ms "
        "|",
        "|---|---|---|---:|---:|---|---:|",
    ]
    for model, size in dict.fromkeys((case.model, case.world_size) for case in cases):
        tried = [case for case in cases if (case.model, case.world_size) == (model, size)]
        rival = next((f"{case.measured.ms:.1f}" for case in tried if case.plan == RIVAL), "")
        chosen = min(
            (c for c in tried if c.plan != RIVAL), key=lambda case: case.predict(hardware).step_ms
        )
        best = min(tried, key=lambda case: case.measured.ms)
        lines.append(
            f"| {model.name} | {size} | {chosen.plan} | {chosen.measured.ms:.1f} | {rival} | "
            f"{best.plan} | {best.measured.ms:.1f} |"
        )
    return lines


def _times(cases: Sequence[Compared], hardware: Hardware) -> tuple[np.ndarray, np.ndarray]:
    return np.array([case.predict(hardware).step_ms for case in cases]), np.array(
        [case.measured.ms for case in cases]
    )


def _draw(cases: Sequence[Compared], hardware: Hardware) -> None:
    from recsys.figures import figure_of

    with figure_of(FIGURE, (7, 6)) as figure:
        axes = figure.subplots()
        for model in dict.fromkeys(case.model for case in cases):
            for size, marker in zip(
                sorted({case.world_size for case in cases}), "o^s", strict=False
            ):
                shown = [case for case in cases if (case.model, case.world_size) == (model, size)]
                axes.scatter(
                    *_times(shown, hardware), marker=marker, label=f"{model.name}, {size} ranks"
                )
        axes.axline((1, 1), slope=1, color="black", linewidth=0.8)
        axes.set(
            xscale="log", yscale="log", xlabel="predicted step (ms)", ylabel="measured step (ms)"
        )
        axes.legend()
