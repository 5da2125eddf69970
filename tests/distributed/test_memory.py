"""What a rank takes at most, beside what the planner predicts, for every kind of sharding."""

import gc
import threading
from pathlib import Path

import pytest
from torch import distributed
from torchrec.modules.embedding_configs import PoolingType

from recsys.planning.hardware import CPU
from recsys.planning.tables import SHARDINGS, Kind, TableOptimizer
from recsys.sharding.training_plan import predict_training
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.memory import return_freed_memory
from recsys.units import GIGA
from tests.support.sharded import train_settings
from tests.support.table_sets import SEED, Linear, TableSet, batches

ROWS, COLUMNS = 250_000, 64  # 64 MB
RANKS, STEPS = 2, 3
WATCH_S = 0.003
# Beside the model: two blocks of initial rows, what Python and the allocator keep
ASIDE_GB = 0.04
PAGES = 2**20
CASES: list[tuple[Kind, TableOptimizer]] = [
    *((kind, "adagrad") for kind in SHARDINGS),
    ("data_parallel", "sgd"),
    ("data_parallel", "rowwise_adagrad"),
]


class Peak(threading.Thread):
    """Watches this process's anonymous memory until it is asked for the most that it was."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = anonymous_bytes()
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(WATCH_S):
            self._peak = max(self._peak, anonymous_bytes())

    def bytes(self) -> int:
        self._ended.set()
        self.join()
        return self._peak


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measure(
    cases: list[tuple[Kind, TableOptimizer]],
) -> dict[tuple[Kind, TableOptimizer], tuple[int, int, int]]:
    """On every rank: bytes of an idle process, and at most and predicted with the model, by
    case."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    idle, found = anonymous_bytes(), {}
    for kind, optimizer in cases:
        hosts_of = 1 if kind == "grid_shard" else world_size
        table = (ROWS, COLUMNS, 1, "id", PoolingType.SUM)
        case = TableSet([table], [kind], optimizer, hosts_of)
        settings = train_settings(
            world_size,
            table_optimizer=optimizer,
            ranks_per_host=hosts_of,
            table_sharding={"table_0": kind},
            hardware=CPU.model_copy(update={"reserved_gb": idle / GIGA + ASIDE_GB}),
        )
        gc.collect()
        return_freed_memory()
        before, peak = anonymous_bytes(), Peak()
        engine = Engine(Linear(case.configs()), settings, SEED)
        for batch in batches(case, rank, world_size)[:STEPS]:
            engine.train_step(batch, engine.serving_loss)
        most = idle + peak.bytes() - before  # PyTorch keeps the engines of the cases before
        rows = engine.plan_summary()
        plan = predict_training(Linear(case.configs()), settings, world_size, rows)
        found[kind, optimizer] = idle, most, sum(plan.rank_bytes[rank])
    return found


@pytest.fixture(scope="module")
def measured() -> list[dict[tuple[Kind, TableOptimizer], tuple[int, int, int]]]:
    """By rank."""
    return run_on_ranks(measure, (CASES,), RANKS, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_prediction_is_an_upper_bound_within_a_tenth(
    case: tuple[Kind, TableOptimizer],
    measured: list[dict[tuple[Kind, TableOptimizer], tuple[int, int, int]]],
) -> None:
    for by_case in measured:
        idle, most, predicted = by_case[case]
        assert most <= predicted
        model = predicted - idle - ASIDE_GB * GIGA
        assert most - idle >= 0.9 * model - PAGES  # a rank without the table holds next to nothing
