"""Flat training against towers on hosts that are joined by a slow network: samples/s, bytes, what
is exposed.

    python -m bench.towers.speed                         # measure everything, print
    python -m bench.towers.speed --only dcn-4 dlrm-4     # measure some again, keep the other runs
    python -m bench.towers.speed --only --write          # measure nothing, write the report

Hosts are network namespaces (bench/towers/cluster.py), which root may make; elsewhere it says so
and ends. Every contender's engine is built once in every rank; they train in turns, at one rate
after the other. About two minutes per cluster on a quiet machine.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import yaml

from bench.towers import worker
from bench.towers.cases import FLAT_WHOLE, RATES_MBIT, SHAPES, Architecture, contenders
from bench.towers.cluster import Cluster, ClusterUnavailableError, Shape, cluster
from bench.towers.report import report_lines, write_report
from bench.towers.runs import RUNS, Run, load_runs, operating_rate, save_runs

BASE_HARDWARE = Path("params/hardware/cpu.yaml")
# The network that the flat engine's planner reckons with, between the slowest and the fastest
PLANNED_MBIT = 400.0
MBIT_PER_GB_S = 8000.0
ARCHITECTURES: tuple[Architecture, ...] = ("dcn", "dlrm")
STEPS = 3  # a turn


def measure(architecture: Architecture, shape: Shape, rounds: int) -> list[Run]:
    """Every contender at every rate, and where the flat step is exposed to the network as in the
    paper."""
    RUNS.mkdir(parents=True, exist_ok=True)
    hardware = RUNS / "hardware.yaml"
    rate = PLANNED_MBIT / MBIT_PER_GB_S / shape.ranks_per_host
    values = yaml.safe_load(BASE_HARDWARE.read_text()) | {"cross_gb_s": rate, "reduce_gb_s": rate}
    hardware.write_text(yaml.safe_dump(values))
    with cluster(shape) as hosts:
        plans = hosts.call(worker.build, architecture, shape, hardware.resolve())[0]
        print(f"{architecture}, {shape}: {plans}", flush=True)
        for name in plans:
            turn(hosts, name)  # warm up
        turns = Turns(architecture, shape)
        turns.take(hosts, RATES_MBIT[architecture], rounds)
        point = operating_rate(
            {run.rate_mbit: run.step_ms for run in turns.runs() if run.contender == FLAT_WHOLE}
        )
        turns.take(hosts, (point, None), rounds)
        return turns.runs()


@dataclass(frozen=True)
class Turn:
    """Milliseconds of each step on its slowest rank; processor and blocked time, and a host's
    bytes, a step."""

    steps_ms: list[float]
    busy_ms: float
    blocked_ms: float
    host_bytes: float


class Turns:
    """Turns of every contender at every rate: rates and contenders alternate, so that a disturbance
    meets all."""

    def __init__(self, architecture: Architecture, shape: Shape) -> None:
        self._architecture: Architecture = architecture
        self._shape = shape
        self._names = [one.name for one in contenders(architecture)]
        self._taken: dict[tuple[float | None, str], list[Turn]] = defaultdict(list)

    def take(self, hosts: Cluster, rates: Sequence[float | None], rounds: int) -> None:
        """``rounds`` more turns at each of ``rates``, the order reversed each round."""
        for index in range(rounds):
            step = 1 if index % 2 == 0 else -1
            for rate in rates[::step]:
                hosts.set_rate(rate)
                for name in self._names[::step]:
                    self._taken[rate, name].append(turn(hosts, name))

    def runs(self) -> list[Run]:
        """What the turns so far give."""
        found = []
        for (rate, name), taken in self._taken.items():
            steps = [ms for one in taken for ms in one.steps_ms]
            spread = min(steps), max(steps)
            busy, sent = (
                median(one.busy_ms for one in taken),
                median(one.host_bytes for one in taken),
            )
            blocked = median(one.blocked_ms for one in taken)
            place = self._architecture, self._shape.hosts, self._shape.ranks_per_host
            found.append(Run(*place, name, rate, median(steps), spread, busy, blocked, sent))
        return found


def turn(hosts: Cluster, name: str) -> Turn:
    """A few steps of a contender."""
    hosts.call(worker.start, name)
    before = hosts.sent_bytes()
    seconds, busy, asleep = zip(*hosts.call(worker.advance, STEPS), strict=True)
    sent = max(after - start for after, start in zip(hosts.sent_bytes(), before, strict=True))
    hosts.call(worker.stop)
    steps_ms = [max(ranks) * 1e3 for ranks in zip(*seconds, strict=True)]
    return Turn(steps_ms, sum(busy) * 1e3, mean(asleep) * 1e3, sent / STEPS)


def main() -> None:
    """Measure what is asked for, print or write all."""
    names = [f"{architecture}-{shape.hosts}" for shape in SHAPES for architecture in ARCHITECTURES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", choices=names, default=names, help="measure these; nothing: none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="write docs/benchmarks/towers_speed.md"
    )
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
            save_runs(name, runs)
    runs = load_runs()
    print("\n".join(report_lines(runs)))
    if given.write:
        write_report(runs)


if __name__ == "__main__":
    main()
