"""The Markdown of a training benchmark."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.shared.report import machine_lines
from bench.training.cases import CONTENDERS, PEERS, Case, Model
from recsys.units import BYTES_PER_GIB, GIGA, MEGA

BASELINE, BASELINE_KIND = "plain-adagrad", "plain"
HEADER = (
    "| contender | samples/s | spread | samples per CPU s | x plain-adagrad | "
    "of GEMM rate | of memory rate | loader alone / step | waiting | peak GiB |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
COLUMNS = 10


@dataclass
class Section:
    """What was measured on one model: ``results`` by contender, a reason where there is none."""

    model: Model
    machine: dict[str, float]
    results: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def rate(self, contender: str) -> float | None:
        """Median samples/s."""
        runs = self.results.get(contender)
        return median(run["samples"] / run["seconds"] for run in runs) if runs else None


def header(command: str, spin: dict[str, str]) -> list[str]:
    """Date, machine, versions, command, what is measured."""
    return [
        *machine_lines("Training speed", command, spin),
        "",
        "End to end from Parquet; medians over repeats, contenders alternating, each in its own "
        "process. Names",
        "are `engine-<ranks>x<threads>-<precision>`; what each column is: "
        "[bench/README.md](../../bench/README.md).",
    ]


def section_lines(section: Section) -> list[str]:
    """Heading, rates and table of one model."""
    model, machine = section.model, section.machine
    lines = [
        "",
        f"## {model.architecture}, dimension {model.dimension}, batch {model.batch_size}, "
        f"{model.table_rows:,} rows",
        "",
        f"{machine['flops'] / MEGA:.1f} MFLOP a sample in the dense part, forward and backward.",
        "",
        *_rate_lines(machine),
        "",
        HEADER,
    ]
    lines += [_row(section, contender) for contender in section.results]
    lines += [
        f"| {contender} | {reason} |{' |' * (COLUMNS - 2)}"
        for contender, reason in section.reasons.items()
    ]
    return lines + _ratios(section)


def _row(section: Section, contender: str) -> str:
    runs, who = section.results[contender], CONTENDERS[contender]
    rates = [run["samples"] / run["seconds"] for run in runs]
    rate, plain = median(rates), section.rate(BASELINE)
    precision = "bf16" if who.bf16 else "fp32"
    gemm = section.machine.get(f"gemm {precision} {who.ranks * who.threads}")
    memory = section.machine.get(f"memory {who.ranks * who.threads}")
    step = median((run["seconds"] - run["waited"]) / run["samples"] for run in runs)
    cells = [
        f"{rate:,.0f}",
        f"{min(rates):,.0f} - {max(rates):,.0f}",
        f"{median(run['samples'] / run['cpu'] for run in runs):,.0f}" if "cpu" in runs[0] else "",
        f"{rate / plain:.1f}" if plain else "",
        f"{rate * section.machine['flops'] / gemm:.0%}" if gemm else "",
        f"{rate * section.machine['table_bytes'] / memory:.0%}" if memory else "",
        f"{median(run['reader'] for run in runs) / step:.1%}",
        f"{median(run['waited'] / run['seconds'] for run in runs):.1%}",
        f"{median(run['peak_gib'] for run in runs):.1f}",
    ]
    return f"| {contender} | {' | '.join(cells)} |"


def _rate_lines(machine: dict[str, float]) -> list[str]:
    """GEMM rate and the dense part's own rate, a line a precision and number of threads."""
    lines = [
        "| precision | threads | GEMM GFLOP/s | dense part alone GFLOP/s | of GEMM rate |",
        "|---|---:|---:|---:|---:|",
    ]
    for key in list(machine):
        if key.startswith("gemm "):
            _, precision, threads = key.split()
            gemm, dense = machine[key], machine[f"dense {precision} {threads}"]
            lines.append(
                f"| {precision} | {threads} | {gemm / GIGA:.0f} | {dense / GIGA:.0f} | "
                f"{dense / gemm:.0%} |"
            )
    rates = [
        f"{rate / GIGA:.1f} GB/s with {key.split()[1]} threads"
        for key, rate in machine.items()
        if key.startswith("memory ")
    ]
    return [*lines, "", f"Memory, copied: {', '.join(rates)}."] if rates else lines


def _ratios(section: Section) -> list[str]:
    """Two ranks against one rank on one core, where both were measured."""
    lines = []
    for precision, wire in (("fp32", ""), ("bf16", ""), ("bf16", "-wire16")):
        one, two = (
            section.rate(f"engine-1x1-{precision}"),
            section.rate(f"engine-2x1-{precision}{wire}"),
        )
        if one and two:
            lines.append(
                f"- two ranks on two cores / one rank on one core, {precision}{wire}: "
                f"{two / one:.2f}"
            )
    return ["", *lines] if lines else []


def losses_differ(section: Section, tolerance: float) -> list[str]:
    """A line a contender whose first loss is not plain PyTorch's; fp32 contenders start from the
    same weights."""
    first = {
        contender: runs[0]["first_loss"]
        for contender, runs in section.results.items()
        if CONTENDERS[contender].kind not in PEERS and not CONTENDERS[contender].bf16
    }
    plain = next(
        (loss for contender, loss in first.items() if CONTENDERS[contender].kind == BASELINE_KIND),
        None,
    )
    if plain is None:
        return []
    return [
        f"- first loss of {contender} is {loss:.6f}, plain PyTorch's {plain:.6f}: not the same "
        f"model"
        for contender, loss in first.items()
        if abs(loss - plain) > tolerance
    ]


def reason_for_skipping(case: Case, tables: int) -> str | None:
    """Why ``case`` cannot run on this machine, None where it can."""
    package = PEERS.get(case.who().kind)
    if package is not None and not (Path(case.peers) / package / "__init__.py").is_file():
        return f"skipped: no --peers folder with {package}"
    needed, free = (
        case.table_bytes(tables) / BYTES_PER_GIB,
        psutil.virtual_memory().available / BYTES_PER_GIB,
    )
    if needed > free:
        return (
            f"does not fit: tables, gradients and optimiser need {needed:.1f} GiB, "
            f"{free:.1f} are free"
        )
    return None


def summary(values: dict[str, Any]) -> str:
    """One line for the terminal while the benchmark runs."""
    rate, waiting = values["samples"] / values["seconds"], values["waited"] / values["seconds"]
    return f"{rate:,.0f} samples/s, waiting {waiting:.0%}"
