"""Show a plan: tables in the terminal, JSON for programs, and a figure."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Grid

from recsys.planning.hardware import TIERS, Topology, format_bytes
from recsys.planning.planner import Plan, PlannedTable
from recsys.planning.tables import PlannedModel, expand_tables
from recsys.units import MS_PER_SECOND

BUSIEST_RANKS = 8
SIZE_INCHES = (9, 6)
TIER_COLOURS = ("#d55e00", "#0072b2", "#7f7f7f")


def summary(plan: Plan, model: PlannedModel, topology: Topology) -> dict[str, Any]:
    """The plan's headline numbers."""
    held = [list(column) for column in zip(*plan.rank_bytes, strict=True)]
    capacity = dict(zip(TIERS, topology.total_bytes(), strict=True))
    return {
        "parameters": sum(table.parameters for table in expand_tables(model)),
        "tables": len(plan.tables),
        "nodes": topology.nodes,
        "gpus": topology.gpus,
        "bytes": {name: sum(column) for name, column in zip(TIERS, held, strict=True)},
        "capacity": capacity,
        "step_ms": plan.step_ms,
        "base_ms": plan.base_ms,
        "samples_per_second": model.batch_size * topology.world_size / plan.step_ms * MS_PER_SECOND,
        "imbalance": plan.imbalance,
        "placement": plan.kept,
        "placements": plan.placements,
        "hardware": topology.hardware.source,
    }


def write_plan(plan: Plan, model: PlannedModel, topology: Topology, path: Path) -> None:
    """Write a summary, a row per table and a row per rank; the same plan gives the same bytes."""
    document = {
        "summary": summary(plan, model, topology),
        "tables": [asdict(table) for table in plan.tables],
        "ranks": [
            {"rank": rank, "ms": ms, **dict(zip(TIERS, held, strict=True))}
            for rank, (ms, held) in enumerate(zip(plan.rank_ms, plan.rank_bytes, strict=True))
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def print_plan(
    plan: Plan, model: PlannedModel, topology: Topology, rows: int, console: Console
) -> None:
    """Print the ``rows`` slowest tables, the busiest ranks, and the headline numbers."""
    console.print(_table_grid(plan, rows))
    console.print(_rank_grid(plan))
    facts = summary(plan, model, topology)
    console.print(
        f"{facts['parameters']:,} parameters in {facts['tables']} tables on {topology.nodes} x "
        f"{topology.gpus} ranks; "
        + "; ".join(
            f"{name.upper()} {format_bytes(used)} of {format_bytes(facts['capacity'][name])}"
            for name, used in facts["bytes"].items()
            if facts["capacity"][name]
        )
    )
    tried = ", ".join(f"{name} {_milliseconds(ms)}" for name, ms in plan.placements.items())
    console.print(
        f"predicted step {plan.step_ms:.2f} ms ({plan.base_ms:.2f} ms without tables), "
        f"{facts['samples_per_second']:,.0f} samples/s; imbalance {plan.imbalance:.3f} (slowest "
        f"rank over mean)"
    )
    console.print(f"placement: {plan.kept} (tables' time on the slowest rank: {tried})")
    console.print(f"hardware: {facts['hardware']}", highlight=False)


def draw_plan(plan: Plan, path: Path) -> None:
    """Draw predicted time, and bytes by tier, as a bar per rank."""
    from recsys.figures import figure_of

    with figure_of(path, SIZE_INCHES) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        ranks = range(len(plan.rank_ms))
        above.bar(ranks, plan.rank_ms, width=1.0, color=TIER_COLOURS[0])
        above.axhline(
            sum(plan.rank_ms) / len(plan.rank_ms), color="black", linewidth=0.8, label="mean"
        )
        above.set(
            ylabel="predicted ms",
            title=f"Step {plan.step_ms:.2f} ms, imbalance {plan.imbalance:.3f}",
        )
        above.legend()
        bottom = [0.0] * len(plan.rank_ms)
        for tier, (name, colour) in enumerate(zip(TIERS, TIER_COLOURS, strict=True)):
            held = [rank[tier] / 10**9 for rank in plan.rank_bytes]
            if any(held):
                below.bar(ranks, held, width=1.0, bottom=bottom, color=colour, label=name.upper())
                bottom = [low + size for low, size in zip(bottom, held, strict=True)]
        below.set(xlabel="rank", ylabel="GB")
        if len(below.containers) > 1:  # a single kind of memory needs no legend
            below.legend()


def _table_grid(plan: Plan, rows: int) -> Grid:
    grid = Grid(title="Tables, the slowest first", title_justify="left", box=SIMPLE, pad_edge=False)
    grid.add_column("table", overflow="fold")
    grid.add_column("kind", no_wrap=True)
    grid.add_column("kernel", no_wrap=True)
    grid.add_column("ranks", overflow="fold")
    grid.add_column("bytes", justify="right", no_wrap=True)
    grid.add_column("ms per rank", justify="right", no_wrap=True)
    ordered = sorted(plan.tables, key=lambda table: (-table.ms / len(table.ranks), table.table))
    for table in ordered[:rows]:
        ms = f"{table.ms / len(table.ranks):.3f}"
        grid.add_row(
            table.table,
            _kind(table),
            _kernel(table),
            short_ranks(table.ranks),
            format_bytes(table.bytes),
            ms,
        )
    rest = ordered[rows:]
    if rest:
        grid.add_row(
            f"{len(rest)} more",
            "see --rows, --json",
            "",
            "",
            format_bytes(sum(t.bytes for t in rest)),
            "",
        )
    return grid


def _rank_grid(plan: Plan) -> Grid:
    grid = Grid(title="Ranks, the slowest first", title_justify="left", box=SIMPLE, pad_edge=False)
    grid.add_column("rank")
    for heading in (*(name.upper() for name in TIERS), "ms"):
        grid.add_column(heading, justify="right")
    order = sorted(range(len(plan.rank_ms)), key=lambda rank: (-plan.rank_ms[rank], rank))
    for rank in order[:BUSIEST_RANKS]:
        held = [format_bytes(size) for size in plan.rank_bytes[rank]]
        grid.add_row(str(rank), *held, f"{plan.rank_ms[rank]:.3f}")
    for name, pick in (("mean", lambda values: sum(values) / len(values)), ("largest", max)):
        held = [
            format_bytes(pick([rank[tier] for rank in plan.rank_bytes]))
            for tier in range(len(TIERS))
        ]
        grid.add_row(name, *held, f"{pick(plan.rank_ms):.3f}")
    return grid


def short_ranks(ranks: list[int]) -> str:
    """Rank numbers with consecutive ones joined: 0-7, 12."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _kind(table: PlannedTable) -> str:
    return table.kind if table.column_shards == 1 else f"{table.kind} / {table.column_shards}"


def _kernel(table: PlannedTable) -> str:
    return table.kernel if table.load_factor is None else f"{table.kernel} {table.load_factor:g}"


def _milliseconds(ms: float | None) -> str:
    return "found no room" if ms is None else f"{ms:.2f} ms"
