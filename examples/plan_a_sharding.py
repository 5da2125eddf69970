"""Plan where embedding tables go on a cluster that you do not have yet, and see why.

    python -m examples.plan_a_sharding

Nothing is allocated and no GPU is needed. `towerflow plan` does the same for a model and a machine
that are described in YAML files.
"""

from pathlib import Path

from rich.console import Console

from recsys.planning.hardware import Topology, load_hardware, parse_bytes
from recsys.planning.plan_report import print_plan
from recsys.planning.planner import Plan
from recsys.planning.smallest_change import plan_or_explain
from recsys.planning.tables import PlannedModel, TableGroup

HARDWARE = Path("params/hardware")


def main(console: Console) -> Plan:
    """Plan a model of three kinds of tables on one host of 8 GPUs, and print the plan."""
    model = PlannedModel(
        batch_size=4096,  # samples per rank
        table_optimizer="adagrad",
        tables=[
            TableGroup(name="user", rows=200_000_000, dimension=64),  # too large for one GPU
            TableGroup(name="item", count=4, rows=5_000_000, dimension=64, pooling=20),
            TableGroup(name="context", count=20, rows=1_000, dimension=64),
        ],
    )
    topology = Topology(
        hardware=load_hardware("a100_zionex", HARDWARE),
        nodes=1,
        gpus=8,
        hbm=parse_bytes("40GB"),
        ddr=parse_bytes("1.5TB"),
        ssd=0,
    )
    plan = plan_or_explain(model, topology)
    print_plan(plan, model, topology, 10, console)
    for table in plan.tables[:2]:
        where = "all ranks" if len(set(table.ranks)) == topology.world_size else table.ranks
        console.print(f"{table.table}: {table.kind} on {where}, {table.ms:.2f} ms over all ranks")
    return plan


if __name__ == "__main__":
    main(Console())
