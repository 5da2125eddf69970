"""If a model does not fit: the smallest change that makes it fit, with its numbers."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from recsys.config import InputError
from recsys.planning.hardware import Topology, format_bytes
from recsys.planning.planner import Plan, find_plan
from recsys.planning.table_costs import base_bytes
from recsys.planning.tables import PlannedModel, expand_tables

FEW_MORE_NODES = 2  # times as many, tried before SSD is proposed
MOST_NODES = 64  # times as many, tried after SSD
SSD_STEP = 10**11  # bytes per node
MOST_SSD_STEPS = 1000


def plan_or_explain(model: PlannedModel, topology: Topology) -> Plan:
    """The best plan.

    Raises:
        InputError: none fits; the message gives the bytes needed and available, and the first of
            these changes that makes it fit: fp16 weights, row-wise AdaGrad, both, up to twice the
            nodes, SSD, more nodes.
    """
    plan = find_plan(model, topology)
    if plan is not None:
        return plan
    change = next(
        _changes(model, topology),
        "none of fp16, rowwise_adagrad, more nodes and SSD does; shrink the tables",
    )
    memory = ", ".join(
        f"{name.upper()} {format_bytes(size)} per {where}"
        for name, size, where in (
            ("hbm", topology.hbm, "rank"),
            ("ddr", topology.ddr, "node"),
            ("ssd", topology.ssd, "node"),
        )
        if size
    )
    raise InputError(
        f"the model does not fit {topology.nodes} x {topology.gpus} ranks ({memory}): "
        f"it needs {format_bytes(needed_bytes(model, topology))} and buffers, "
        f"there are {format_bytes(sum(topology.total_bytes()))}; smallest change that fits: "
        f"{change}"
    )


def needed_bytes(model: PlannedModel, topology: Topology) -> int:
    """Bytes over all ranks: weights, optimiser state, and what every rank holds in any plan."""
    tables = expand_tables(model)
    base = sum(base_bytes(tables, model, topology)) * topology.world_size
    return base + sum(table.held_bytes(model.table_optimizer) for table in tables)


def _changes(model: PlannedModel, topology: Topology) -> Iterator[str]:
    """The changes that make ``model`` fit, smallest first."""
    halved, row_wise = (
        _in_fp16(model),
        model.model_copy(update={"table_optimizer": "rowwise_adagrad"}),
    )
    both = halved.model_copy(update={"table_optimizer": "rowwise_adagrad"})
    leaner_state = model.table_optimizer in ("adagrad", "adam")
    if halved != model and _fits(halved, topology):
        yield f"dtype: fp16 for every table ({_needs(halved, topology)})"
    if leaner_state and _fits(row_wise, topology):
        yield f"table_optimizer: rowwise_adagrad ({_needs(row_wise, topology)})"
    if leaner_state and halved != model and _fits(both, topology):
        yield (
            "dtype: fp16 for every table and table_optimizer: rowwise_adagrad "
            f"({_needs(both, topology)})"
        )
    yield from _more_nodes(model, topology, FEW_MORE_NODES)
    if topology.hardware.ssd is not None:
        yield from _more_ssd(model, topology)
    yield from _more_nodes(model, topology, MOST_NODES)


def _more_nodes(model: PlannedModel, topology: Topology, times: int) -> Iterator[str]:
    nodes = _smallest(
        topology.nodes, topology.nodes * times, lambda n: _fits(model, replace(topology, nodes=n))
    )
    if nodes is not None:
        larger = replace(topology, nodes=nodes)
        capacity = format_bytes(sum(larger.total_bytes()))
        yield f"--nodes {nodes} ({_needs(model, larger)} of {capacity})"


def _more_ssd(model: PlannedModel, topology: Topology) -> Iterator[str]:
    had = topology.ssd // SSD_STEP
    steps = _smallest(
        had, had + MOST_SSD_STEPS, lambda n: _fits(model, replace(topology, ssd=n * SSD_STEP))
    )
    if steps is not None:
        size = format_bytes(steps * SSD_STEP).replace(" ", "")
        yield f"--ssd {size} per node"


def _smallest(below: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest number in (below, most] that fits, found by doubling the step and then halving
    the gap; None if none fits."""
    step, high = 1, min(below + 1, most)
    while not fits(high):
        if high == most:
            return None
        below, step = high, step * 2
        high = min(high + step, most)
    while high - below > 1:
        middle = (below + high) // 2
        below, high = (below, middle) if fits(middle) else (middle, high)
    return high


def _fits(model: PlannedModel, topology: Topology) -> bool:
    return find_plan(model, topology, quick=True) is not None


def _needs(model: PlannedModel, topology: Topology) -> str:
    return f"needs {format_bytes(needed_bytes(model, topology))}"


def _in_fp16(model: PlannedModel) -> PlannedModel:
    groups = [group.model_copy(update={"dtype": "fp16"}) for group in model.tables]
    return model.model_copy(update={"tables": groups})
