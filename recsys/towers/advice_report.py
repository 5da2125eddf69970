"""Show advice: where each choice spends its step, and why the first one is best."""

from dataclasses import fields

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Grid

from recsys.towers.advice import Choice
from recsys.towers.step_costs import StepTime, TowerCluster
from recsys.units import MEGA

# Below this, the measurements behind the constants cannot distinguish two choices
SMALL_GAIN = 1.02
SMALLEST_SHOWN_MS = 0.005  # half of the last digit printed
WIDEST = 1000  # characters
LIMITED_BY = {
    "compute": "the dense part's FLOPs",
    "fixed": "the fixed cost of a step",
    "copies": "look-ups and shuffles in memory",
    "ids": "ids on the network",
    "inside": "exchange inside the hosts",
    "across": "exchange across hosts",
    "latency": "the number of collectives and messages",
    "gradients": "the all-reduce of dense gradients",
}


def print_advice(found: list[Choice], cluster: TowerCluster, rows: int, console: Console) -> None:
    """Print a table of the fastest ``rows`` choices and the flat one, then what to do and why."""
    flat = next(choice for choice in found if choice.towers == 0)
    shown = found[:rows] + ([flat] if flat not in found[:rows] else [])
    grid = _grid(shown, flat)
    whole = console.measure(grid, options=console.options.update_width(WIDEST))
    # A narrow terminal wraps a line; no number is dropped
    console.width = max(console.width, whole.maximum)
    console.print(grid)
    if len(found) > len(shown):
        console.print(f"{len(found) - len(shown)} more; --rows shows them")
    for line in reasons(found[0], flat):
        console.print(line)
    console.print(f"constants: {cluster.source}")


def reasons(best: Choice, flat: Choice) -> list[str]:
    """What to do, and why."""
    gain = flat.time.total / best.time.total
    limit = _largest(flat.time)
    lines = [
        f"flat: {flat.time.total:.2f} ms per step, of which {getattr(flat.time, limit):.2f} ms are "
        f"{LIMITED_BY[limit]}; "
        f"{flat.time.exchange / flat.time.total:.0%} is exposed exchange"
    ]
    if gain < SMALL_GAIN:
        return [*lines, "advice: stay flat; no towers are predicted to be faster by 2 % or more"]
    compression = flat.work.features * flat.work.dimension / (best.work.output_width or 1)
    spent = ", ".join(
        f"{name} {getattr(flat.time, name) - getattr(best.time, name):+.2f}"
        for name in (field.name for field in fields(StepTime))
        if abs(getattr(flat.time, name) - getattr(best.time, name)) >= SMALLEST_SHOWN_MS
    )
    return [
        *lines,
        f"advice: {best.name} (compression {compression:.2g}), {gain:.2f} x as fast",
        "to set it: " + " ".join(f"--set {one}" for one in best.settings),
        f"ms saved by term: {spent}",
        f"then the step is limited by {LIMITED_BY[_largest(best.time)]}; what the compression "
        f"costs in quality is not "
        "in this table",
    ]


def _grid(shown: list[Choice], flat: Choice) -> Grid:
    names = [
        field.name
        for field in fields(StepTime)
        if any(getattr(choice.time, field.name) for choice in shown)
    ]
    grid = Grid(box=SIMPLE)
    for name in ("choice", "x flat", "ms", *names, "MB across"):
        grid.add_column(
            name, justify="left" if name == "choice" else "right", no_wrap=name != "choice"
        )
    for choice in shown:
        across = (choice.moved.outputs_across + choice.moved.ids_across) / MEGA
        cells = [f"{flat.time.total / choice.time.total:.2f}", f"{choice.time.total:.2f}"]
        cells += [f"{getattr(choice.time, name):.2f}" for name in names]
        grid.add_row(choice.name, *cells, f"{across:.1f}")
    return grid


def _largest(time: StepTime) -> str:
    return max(LIMITED_BY, key=lambda name: getattr(time, name))
