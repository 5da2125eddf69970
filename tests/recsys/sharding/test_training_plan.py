"""The planner inside the engine: predictions for given plans, plans for training, both against the
real thing."""

from pathlib import Path
from typing import Any

import pytest
from torchrec.distributed.types import EmbeddingModuleShardingPlan

from bench.planner.cases import JUDGED, plans
from bench.planner.report import Compared
from bench.planner.worker import measure
from recsys.config import InputError, load_settings
from recsys.models.factory import build_ranker
from recsys.planning.assess import Way, assess
from recsys.planning.hardware import CPU, Hardware, Topology
from recsys.planning.plan_report import draw_plan
from recsys.planning.planner import find_plan
from recsys.planning.table_costs import LENGTH_BYTES
from recsys.planning.tables import Kind, PlannedModel, TableGroup
from recsys.sharding.torchrec_plan import to_torchrec_plan
from recsys.sharding.training_plan import planned_model, predict_training, search, training_topology
from recsys.training import ranks
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings
from recsys.units import FLOAT_BYTES

HARDWARE = Path(__file__).resolve().parents[3] / "params" / "hardware" / "cpu.yaml"
GB = 10**9
BARE = CPU.model_copy(update={"reserved_gb": 0.0})  # all of memory_gb is the model's
SEED = 1


def model_of(*rows: int, **changes: object) -> PlannedModel:
    tables = [TableGroup(name=f"t{i}", rows=n, dimension=32) for i, n in enumerate(rows)]
    return PlannedModel.model_validate({"batch_size": 64, "tables": tables, **changes})


def cpu(ranks_per_host: int, hosts: int = 1, **changes: object) -> Topology:
    hardware = load_settings(HARDWARE, Hardware).model_copy(update=changes)
    return Topology(hardware, hosts, ranks_per_host, 0, 8 * GB, 0)


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_found_plan_is_predicted_the_same_when_given(hosts: int) -> None:
    model, topology = model_of(100, 5_000, 80_000, table_optimizer="adagrad"), cpu(2, hosts)
    found = find_plan(model, topology)
    assert found is not None
    given = assess(
        model, topology, {t.table: Way(t.kind, t.ranks, t.column_shards) for t in found.tables}
    )
    assert given.rank_ms == pytest.approx(found.rank_ms)
    assert given.rank_bytes == found.rank_bytes


def test_what_fixed_tables_take_counts_on_their_ranks() -> None:
    """Of three alike tables two share a rank, and not that of the fixed one."""
    model, fixed = model_of(*[50_000] * 3, kinds=["table_wise"]), {"t0": Way("table_wise", [1])}
    found = find_plan(model, cpu(2), fixed=fixed)
    assert found is not None
    ranks = {table.table: table.ranks for table in found.tables}
    assert ranks["t0"] == [1]
    assert sorted([*ranks["t1"], *ranks["t2"]]) in ([0, 0], [0, 1])
    heavy = TableGroup(name="t0", rows=50_000, dimension=32, pooling=20.0)
    laden = find_plan(
        model.model_copy(update={"tables": [heavy, *model.tables[1:]]}), cpu(2), fixed=fixed
    )
    assert laden is not None
    assert [table.ranks for table in laden.tables] == [[1], [0], [0]]
    given = assess(
        model.model_copy(update={"tables": [heavy, *model.tables[1:]]}),
        cpu(2),
        {table.table: Way(table.kind, table.ranks) for table in laden.tables},
    )
    assert laden.rank_ms == pytest.approx(given.rank_ms)
    assert laden.rank_bytes == given.rank_bytes


@pytest.mark.parametrize("fixed", [None, Way("table_wise", [1]), Way("row_wise", [0, 1])])
def test_on_a_gpu_rows_without_room_go_into_the_hosts_memory(fixed: Way | None) -> None:
    model = model_of(20_000_000, 1_000)  # 2.6 GB, and little
    fixed_ways = {} if fixed is None else {"t0": fixed}
    settings = TrainSettings(device="cuda", memory_gb=3.5, table_optimizer="rowwise_adagrad")
    assert find_plan(model, training_topology(settings, 1, 2), fixed=fixed_ways) is None
    beside = settings.model_copy(update={"host_memory_gb": 4.0})
    topology = training_topology(beside, 1, 2)
    plan = find_plan(model, topology, fixed=fixed_ways)
    assert plan is not None
    large, small = plan.tables
    assert large.kernel in ("fused_uvm", "fused_uvm_caching")
    assert small.kernel in ("fused", "dense")
    torchrec = to_torchrec_plan(plan, topology, {"t0": "embeddings", "t1": "embeddings"})
    placed = torchrec.plan["embeddings"]
    assert isinstance(placed, EmbeddingModuleShardingPlan)
    assert placed["t0"].compute_kernel == large.kernel
    cache = placed["t0"].cache_params
    assert (cache.load_factor if cache else None) == large.load_factor
    way = Way(large.kind, large.ranks, large.column_shards, large.kernel, large.load_factor)
    other = Way(small.kind, small.ranks, small.column_shards)
    assert assess(model, topology, {"t0": way, "t1": other}).rank_bytes == plan.rank_bytes


@pytest.mark.parametrize("hosts", [1, 2])
def test_what_fixed_tables_hold_counts_on_their_ranks(hosts: int) -> None:
    """A rank has room for one of the two large tables; the free one goes where the fixed one is
    not."""
    model = model_of(80_000, 80_000, kinds=["table_wise"])
    settings = TrainSettings(hardware=BARE, memory_gb=1.5 * 80_000 * 32 * FLOAT_BYTES / 2**30)
    topology = training_topology(settings, hosts, 2)
    for rank in range(2 * hosts):
        found = find_plan(model, topology, fixed={"t0": Way("table_wise", [rank])})
        assert found is not None
        assert [one.ranks == [rank] for one in found.tables] == [True, False]
        assert max(hbm for hbm, _, _ in found.rank_bytes) <= topology.hbm
    assert (
        find_plan(model, topology, fixed={name: Way("table_wise", [0]) for name in ("t0", "t1")})
        is None
    )


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "data_parallel"])
def test_each_feature_of_a_shared_table_is_an_output_of_its_own(kind: Kind) -> None:
    """As the positions of a sequence are: the outputs of four features are those of a feature four
    times as wide."""
    given = {"name": "t0", "rows": 1_000, "pooling": 4.0}
    shapes = {"one": (32, 1), "four": (32, 4), "wide": (128, 1)}
    plans = {
        name: assess(
            model_of(1).model_copy(
                update={"tables": [TableGroup(**given, dimension=width, features=features)]}
            ),
            cpu(2),
            {"t0": Way(kind, [0] if kind == "table_wise" else [0, 1])},
        )
        for name, (width, features) in shapes.items()
    }
    held = {name: plan.rank_bytes[0][1] for name, plan in plans.items()}
    rows = 500 if kind == "row_wise" else 1_000
    copies = 2 if kind == "data_parallel" else 1  # the gradient of the whole table
    lengths = 3 * LENGTH_BYTES * 64 * (1 if kind == "data_parallel" else 2)
    assert held["wide"] - held["four"] == 96 * rows * FLOAT_BYTES * copies - lengths
    assert plans["one"].step_ms < plans["four"].step_ms


def test_ranks_that_share_cores_take_their_work_in_turn() -> None:
    ways = {"t0": Way("row_wise", [0, 1, 2, 3])}
    alone = assess(model_of(10_000), cpu(4, cores=None), ways)
    shared = assess(model_of(10_000), cpu(4, cores=2), ways)
    assert alone.step_ms == max(alone.rank_ms)
    assert shared.step_ms == pytest.approx(2 * alone.step_ms)
    crowded = {"t0": Way("table_wise", [0])}
    busy = assess(
        model_of(10_000_000, batch_size=4096),
        cpu(4, cores=2, step_ms=0.0, collective_ms=0.0),
        crowded,
    )
    assert busy.step_ms == max(busy.rank_ms)


def test_the_search_counts_the_exchanges_of_each_kind() -> None:
    """With very slow collectives all tables are copied, which needs none but the dense part's."""
    plan = search(model_of(100, 5_000, 80_000), cpu(2, collective_ms=1000.0))
    assert plan is not None
    assert {table.kind for table in plan.tables} == {"data_parallel"}


def test_one_rank_holds_whole_tables() -> None:
    plan = search(model_of(100, 5_000), cpu(1))
    assert plan is not None
    assert {table.kind for table in plan.tables} == {"table_wise"}


def test_memory_of_a_rank_is_its_own() -> None:
    """Two tables that fit two ranks only if each takes one."""
    model = model_of(1_000_000, 1_000_000, kinds=["table_wise"])
    settings = TrainSettings(memory_gb=0.2, hardware=BARE)
    plan = search(model, training_topology(settings, 1, 2))
    assert plan is not None
    assert sorted(table.ranks for table in plan.tables) == [[0], [1]]
    assert (
        search(model, training_topology(settings.model_copy(update={"memory_gb": 0.1}), 1, 2))
        is None
    )


def test_the_hardware_may_be_the_name_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(f"hardware: {HARDWARE}\n")
    assert load_settings(path, TrainSettings).hardware == load_settings(HARDWARE, Hardware)
    path.write_text(f"hardware: {tmp_path}/none.yaml\n")
    with pytest.raises(InputError, match=r"none\.yaml: no such file") as raised:
        load_settings(path, TrainSettings)
    assert "\n" not in str(raised.value)


def test_the_figure_of_a_plan_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    model, settings = JUDGED[0], TrainSettings(hardware=CPU)
    ranker = build_ranker(model.schema, model.settings, None, SEED, "meta")
    plan = search(planned_model(ranker, settings, 2), training_topology(settings, 1, 2))
    assert plan is not None
    rows = [
        {"table": table.table, "kind": table.kind, "ranks": table.ranks} for table in plan.tables
    ]
    for name in ("one.png", "two.png"):
        draw_plan(predict_training(ranker, settings, 2, rows), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.slow
def test_predicted_bytes_are_the_engines() -> None:
    hardware = load_settings(HARDWARE, Hardware)
    model = JUDGED[3]
    tried = plans(model, 2)
    measured = run_on_ranks(measure, (model, tried, 1, 1), 2, 1)[0]
    cases = [Compared(model, 2, one.name, m) for one, m in zip(tried, measured, strict=True)]
    for case in cases:
        assert case.predicted_bytes(hardware) == case.measured.bytes, case.plan


def plan_of_rank(settings: TrainSettings) -> list[list[dict[str, Any]]]:
    model = JUDGED[1]
    engine = Engine(build_ranker(model.schema, model.settings, None, SEED, "meta"), settings, SEED)
    return ranks.gather(engine.plan_summary())


def test_every_rank_gets_the_plan_that_the_search_finds() -> None:
    model = JUDGED[1]
    settings = TrainSettings(hardware=CPU, sharding="planner")
    plans_of_ranks = run_on_ranks(plan_of_rank, (settings,), 2, 1)[0]
    assert plans_of_ranks[0] == plans_of_ranks[1]
    ranker = build_ranker(model.schema, model.settings, None, SEED, "meta")
    found = search(planned_model(ranker, settings, 2), training_topology(settings, 1, 2))
    assert found is not None
    expected = {table.table: (table.kind, table.ranks) for table in found.tables}
    assert {row["table"]: (row["kind"], row["ranks"]) for row in plans_of_ranks[0]} == expected
