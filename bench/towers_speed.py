"""Flat training against towers on hosts that are joined by a slow network: samples/s, bytes, what is exposed.

    python -m bench.towers_speed                         # measure everything, print
    python -m bench.towers_speed --only dcn-4 dlrm-4     # measure some again; the other runs are kept
    python -m bench.towers_speed --only --write          # measure nothing; write docs/benchmarks/towers_speed.md

Hosts are network namespaces (bench/cluster.py), which root may make; elsewhere it says so and ends. Every contender's
engine is built once in every rank; they train in turns, at one rate after the other. About two minutes a cluster on a
quiet machine.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import yaml

from bench import towers_worker
from bench.cluster import Cluster, ClusterUnavailableError, Shape, cluster
from bench.towers_cases import FLAT_WHOLE, RATES_MBIT, SHAPES, Architecture, contenders

RUNS = Path(".work/towers_speed")
BASE_HARDWARE = Path("params/hardware/cpu.yaml")
PLANNED_MBIT = 400.0  # the network that the flat engine's planner reckons with, between the slowest and the fastest
MBIT_PER_GB_S = 8000.0
PAPER_EXPOSED = 0.275  # of the flat step, DCN on 64 H100: the paper's Figure 1
ARCHITECTURES: tuple[Architecture, ...] = ("dcn", "dlrm")
STEPS = 2  # a turn


@dataclass(frozen=True)
class Run:
    """One contender at one rate: medians over turns, of the slowest rank.

    ``busy_ms`` is processor time of all ranks a step; ``host_bytes`` what the busiest host sends a step,
    by its interface's counter.
    """

    architecture: Architecture
    hosts: int
    ranks_per_host: int
    contender: str
    rate_mbit: float | None
    step_ms: float
    spread_ms: tuple[float, float]
    busy_ms: float
    host_bytes: float
    operating_point: bool = False


def measure(architecture: Architecture, shape: Shape, rounds: int) -> list[Run]:
    """Every contender at every rate, and where the flat step is exposed to the network as in the paper."""
    RUNS.mkdir(parents=True, exist_ok=True)
    hardware = RUNS / "hardware.yaml"
    rate = PLANNED_MBIT / MBIT_PER_GB_S / shape.ranks_per_host
    values = yaml.safe_load(BASE_HARDWARE.read_text()) | {"cross_gb_s": rate, "reduce_gb_s": rate}
    hardware.write_text(yaml.safe_dump(values))
    with cluster(shape) as hosts:
        plans = hosts.call(towers_worker.build, architecture, shape, hardware.resolve())[0]
        print(f"{architecture}, {shape}: {plans}", flush=True)
        for name in plans:
            turn(hosts, name)  # warm up
        runs = [run for at in RATES_MBIT[architecture] for run in at_rate(hosts, architecture, at, rounds, False)]
        point = operating_rate([run for run in runs if run.contender == FLAT_WHOLE])
        return runs + at_rate(hosts, architecture, point, rounds, True)


def at_rate(
    hosts: Cluster, architecture: Architecture, rate_mbit: float | None, rounds: int, point: bool
) -> list[Run]:
    """Every contender in turns, the order reversed each round."""
    hosts.set_rate(rate_mbit)
    names = [one.name for one in contenders(architecture)]
    turns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            turns[name].append(turn(hosts, name))
    found = []
    for name, taken in turns.items():
        steps, busy, sent = (list(column) for column in zip(*taken, strict=True))
        found.append(
            Run(
                architecture,
                hosts.shape.hosts,
                hosts.shape.ranks_per_host,
                name,
                rate_mbit,
                median(steps),
                (min(steps), max(steps)),
                median(busy),
                median(sent),
                point,
            )
        )
    print(f"{rate_mbit} Mbit/s: " + ", ".join(f"{run.contender} {run.step_ms:.0f} ms" for run in found), flush=True)
    return found


def turn(hosts: Cluster, name: str) -> tuple[float, float, float]:
    """A few steps of a contender: milliseconds of one, of all processors, bytes that the busiest host sent."""
    hosts.call(towers_worker.start, name)
    before = hosts.sent_bytes()
    seconds, busy = zip(*hosts.call(towers_worker.advance, STEPS), strict=True)
    sent = max(after - start for after, start in zip(hosts.sent_bytes(), before, strict=True))
    hosts.call(towers_worker.stop)
    return max(seconds) / STEPS * 1e3, sum(busy) / STEPS * 1e3, sent / STEPS


def operating_rate(flat: list[Run]) -> float:
    """Mbit/s at which PAPER_EXPOSED of the flat step is exposed, between the rates measured: time is linear in 1/rate."""
    free = next(run.step_ms for run in flat if run.rate_mbit is None)
    wanted = free / (1 - PAPER_EXPOSED)
    points = sorted(((1 / run.rate_mbit, run.step_ms) for run in flat if run.rate_mbit), key=lambda point: point[1])
    inverse, below = 0.0, free
    for slower, step_ms in points:
        if step_ms >= wanted:
            inverse += (slower - inverse) * (wanted - below) / (step_ms - below)
            break
        inverse, below = slower, step_ms
    return round(1 / inverse, 1)


def load_runs() -> list[Run]:
    """All runs that are kept."""
    files = [RUNS / f"{architecture}-{shape.hosts}.json" for shape in SHAPES for architecture in ARCHITECTURES]
    return [Run(**values) for path in files if path.is_file() for values in json.loads(path.read_text())]


def main() -> None:
    """Measure what is asked for, print or write all."""
    names = [f"{architecture}-{shape.hosts}" for shape in SHAPES for architecture in ARCHITECTURES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="measure these; nothing: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/towers_speed.md")
    given = parser.parse_args()
    for shape in SHAPES:
        for architecture in ARCHITECTURES:
            name = f"{architecture}-{shape.hosts}"
            if name not in given.only:
                continue
            try:
                runs = measure(architecture, shape, given.rounds)
            except ClusterUnavailableError as error:
                sys.exit(f"skipped: {error}")
            (RUNS / f"{name}.json").write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")


if __name__ == "__main__":
    main()
