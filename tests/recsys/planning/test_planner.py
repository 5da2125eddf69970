"""Plans: bytes by hand, memory never exceeded, quality at scale, the same plan twice."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import InputError, load_settings
from recsys.planning.hardware import Hardware, Topology, load_hardware, parse_bytes
from recsys.planning.planner import Plan, find_plan
from recsys.planning.smallest_change import plan_or_explain
from recsys.planning.table_costs import base_bytes, base_ms, column_counts, hit_rate, options
from recsys.planning.tables import PlannedModel, Table, expand_tables, state_bytes

PARAMS = Path(__file__).resolve().parents[3] / "params"
GB, TB = 10**9, 10**12


def hardware(**changes: Any) -> Hardware:
    return load_hardware("a100_zionex", PARAMS / "hardware").model_copy(update=changes)


def machine(
    nodes: int = 1, gpus: int = 2, hbm: int = 40 * GB, ddr: int = 0, ssd: int = 0, **changes: Any
) -> Topology:
    return Topology(hardware(**changes), nodes, gpus, hbm, ddr, ssd)


def model_of(*tables: dict[str, Any], **changes: Any) -> PlannedModel:
    return PlannedModel.model_validate({"batch_size": 64, "tables": list(tables), **changes})


def table_of(name: str, rows: int, dimension: int = 64, **changes: Any) -> dict[str, Any]:
    return {"name": name, "rows": rows, "dimension": dimension, **changes}


def read_model(name: str) -> PlannedModel:
    return load_settings(PARAMS / "models" / f"{name}.yaml", PlannedModel)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "expected"),
    [
        ("sgd", "fp32", 256_000_000),
        ("rowwise_adagrad", "fp32", 260_000_000),
        ("adagrad", "fp32", 512_000_000),
        ("adam", "fp32", 768_000_000),
        ("sgd", "fp16", 128_000_000),
        ("rowwise_adagrad", "fp16", 132_000_000),
        ("adagrad", "fp16", 384_000_000),
        ("adam", "fp16", 640_000_000),
    ],
)
def test_bytes_of_a_million_rows_of_64(optimizer: Any, dtype: Any, expected: int) -> None:
    """The sizes that FBGEMM's kernels allocate."""
    assert Table("t", 10**6, 64, 1.0, 1.0, dtype).held_bytes(optimizer) == expected


def test_column_shards_keep_a_moment_each() -> None:
    assert 4 * state_bytes("rowwise_adagrad", 1000, 16) == 4 * 4000
    assert 4 * state_bytes("adagrad", 1000, 16) == state_bytes("adagrad", 1000, 64)


def test_bytes_of_one_table_on_one_rank_by_hand() -> None:
    model = model_of(table_of("t", 1000, pooling=2.0), kinds=["table_wise"], dense_parameters=10)
    topology = machine(gpus=1, reserved_gb=0.0)
    plan = find_plan(model, topology)
    assert plan is not None
    weights, state = 1000 * 64 * 4, 1000 * 4
    ids = 64 * 2 * 8 * 6 + 64 * 8  # this batch, the next one, the sort's four; lengths
    # Of the shard, with gradients; and once more where the rank's batch arrives
    outputs = 64 * 64 * 4 * 2
    dense = 10 * 4 * (1 + 1 + 2)  # weights, gradient, Adam
    assert plan.tables[0].bytes == weights + state + ids + outputs
    assert plan.rank_bytes == [(weights + state + ids + outputs + outputs + dense, 0, 0)]


def test_what_every_rank_holds_whatever_the_plan_takes_memory_from_the_tables() -> None:
    model = model_of(table_of("t", 1000), kinds=["table_wise"], dense_parameters=10**6)
    plan = find_plan(model, machine(gpus=1))
    assert plan is not None
    needed = plan.rank_bytes[0][0]
    assert needed > plan.tables[0].bytes + 10**6 * 4 * 4
    assert find_plan(model, machine(gpus=1, hbm=needed)) is not None
    assert find_plan(model, machine(gpus=1, hbm=needed - 1)) is None


def test_ms_of_one_table_on_one_rank_by_hand() -> None:
    model = model_of(table_of("t", 1000, pooling=2.0), kinds=["table_wise"], table_optimizer="sgd")
    plan = find_plan(model, machine(gpus=1, shard_ms=0.0))
    assert plan is not None
    # Ids x (read, read, write) x row; outputs and their gradients
    moved = 64 * 2 * 3 * 256 + 64 * 64 * 4 * 2
    assert plan.tables[0].ms == pytest.approx(moved / 1550e9 * 1000)
    assert plan.step_ms == pytest.approx(plan.tables[0].ms)


def test_exchange_of_two_nodes_by_hand() -> None:
    """Ids and lengths in, fp16 out, bf16 back: half inside the node of one rank, half across."""
    model = model_of(
        table_of("t", 1000), kinds=["table_wise"], forward_comm="fp16", backward_comm="bf16"
    )
    flat, two = machine(gpus=1), machine(nodes=2, gpus=1)
    table = expand_tables(model)[0]
    alone = options(table, model.model_copy(update={"batch_size": 128}), flat)[0].ms
    volume = 128 * (8 + 8) + 128 * 64 * (2 + 2)
    assert options(table, model, two)[0].ms - alone == pytest.approx(volume / 2 / 7e9 * 1000)


def test_row_wise_adagrad_never_gets_split_columns_unasked() -> None:
    table = table_of("t", 1000)
    kinds = {
        o.kind for o in options(expand_tables(model_of(table))[0], model_of(table), machine(2, 2))
    }
    assert kinds == {"data_parallel", "table_wise", "row_wise", "table_row_wise"}
    exact = model_of(table, table_optimizer="adagrad")
    kinds = {o.kind for o in options(expand_tables(exact)[0], exact, machine(2, 2))}
    assert {"column_wise", "table_column_wise", "grid_shard"} < kinds


def test_column_shards_are_multiples_of_four() -> None:
    assert column_counts(24, 8) == [2]
    assert column_counts(64, 8) == [2, 4, 8]
    assert column_counts(4, 8) == []


def test_hit_rate_grows_with_the_cache() -> None:
    rates = [hit_rate(10**6, 1.0, factor) for factor in (0.001, 0.01, 0.1, 1.0)]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    # No skew: the share of the rows
    assert hit_rate(10**6, 0.0, 0.1) == pytest.approx(0.1, rel=1e-3)


@settings(max_examples=25)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    pooling=st.lists(st.integers(1, 50), min_size=6),
)
def test_table_wise_plans_against_brute_force(rows: list[int], pooling: list[int]) -> None:
    tables = [table_of(f"t{i}", 1000 * n, pooling=pooling[i]) for i, n in enumerate(rows)]
    model, topology = model_of(*tables, kinds=["table_wise"]), machine(gpus=2)
    plan = find_plan(model, topology)
    assert plan is not None
    times = [table.ms for table in plan.tables]
    best = min(
        max(sum(t for t, rank in zip(times, where, strict=True) if rank == one) for one in (0, 1))
        for where in product((0, 1), repeat=len(times))
    )
    assert best - 1e-9 <= plan.step_ms - plan.base_ms <= 7 / 6 * best + 1e-9


def check_memory(plan: Plan, model: PlannedModel, topology: Topology) -> None:
    """Recount the plan from its tables: within capacity, and as it says."""
    gpus = topology.gpus
    held = np.array(plan.rank_bytes)
    assert held[:, 0].max() <= topology.hbm
    assert held[:, 1].reshape(-1, gpus).sum(axis=1).max() <= topology.ddr
    assert held[:, 2].reshape(-1, gpus).sum(axis=1).max() <= topology.ssd
    tables = expand_tables(model)
    everywhere = sum(base_bytes(tables, model, topology)) * topology.world_size
    assert held.sum() == everywhere + sum(table.bytes for table in plan.tables)
    assert [t.table for t in plan.tables] == [t.name for t in tables]
    loads = np.full(
        topology.world_size, base_ms(model, topology, {table.kind for table in plan.tables})
    )
    for table in plan.tables:
        loads[table.ranks] += table.ms / len(table.ranks)
        assert len(set(table.ranks)) == len(table.ranks)
        if table.kind in ("table_row_wise", "table_column_wise"):
            assert len({rank // gpus for rank in table.ranks}) == 1
    np.testing.assert_allclose(loads, plan.rank_ms)


@settings(max_examples=40)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 10**7), st.sampled_from([8, 64, 256])), min_size=1, max_size=8
    ),
    optimizer=st.sampled_from(["sgd", "rowwise_adagrad", "adagrad", "adam"]),
    hbm=st.sampled_from([GB, 4 * GB]),
    ddr=st.sampled_from([0, 4 * GB, 32 * GB]),
    ssd=st.sampled_from([0, 64 * GB]),
    nodes=st.integers(1, 3),
)
def test_plans_stay_within_memory(
    sizes: list[tuple[int, int]], optimizer: str, hbm: int, ddr: int, ssd: int, nodes: int
) -> None:
    tables = [table_of(f"t{i}", rows, dimension) for i, (rows, dimension) in enumerate(sizes)]
    model, topology = (
        model_of(*tables, table_optimizer=optimizer),
        machine(nodes, 2, hbm, ddr, ssd, reserved_gb=0.1),
    )
    plan = find_plan(model, topology)
    if plan is not None:
        check_memory(plan, model, topology)
    else:
        assert sum(t.held_bytes(model.table_optimizer) for t in expand_tables(model)) > 0.4 * hbm


def test_huge_table_goes_to_rows_and_the_cache_gets_what_is_left() -> None:
    model = model_of(table_of("huge", 50_000_000, 256, pooling=20), table_of("small", 100))
    topology = machine(gpus=4, hbm=8 * GB, ddr=100 * GB)
    plan = find_plan(model, topology)
    assert plan is not None
    huge = plan.tables[0]
    assert (huge.kind, huge.kernel, len(huge.ranks)) == ("row_wise", "fused_uvm_caching", 4)
    assert huge.load_factor in model.load_factors
    larger = find_plan(model, machine(gpus=4, hbm=12 * GB, ddr=100 * GB))
    assert larger is not None
    assert (larger.tables[0].load_factor or 1.0) > (huge.load_factor or 0.0)
    assert larger.step_ms < plan.step_ms


def test_model_f_of_the_paper_fits_sixteen_nodes() -> None:
    model, topology = read_model("model_f"), machine(16, 8, 40 * GB, 3 * TB // 2)
    assert sum(table.parameters for table in expand_tables(model)) == pytest.approx(12e12, rel=0.01)
    plan = find_plan(model, topology)
    assert plan is not None
    check_memory(plan, model, topology)
    assert find_plan(model, topology) == plan
    assert plan.imbalance < 1.05


@pytest.mark.parametrize(
    ("changes", "dtype", "nodes", "ssd", "expected"),
    [
        ({}, "fp32", 16, 0, "dtype: fp16 for every table (needs 24.5"),
        (
            {"table_optimizer": "adagrad"},
            "fp16",
            16,
            0,
            "table_optimizer: rowwise_adagrad (needs 24.5",
        ),
        (
            {"table_optimizer": "adam"},
            "fp32",
            16,
            0,
            "dtype: fp16 for every table and table_optimizer: rowwise_adagrad",
        ),
        ({}, "fp16", 10, 0, "--nodes 1"),
        ({}, "fp16", 2, 0, "--ssd 1"),
    ],
)
def test_smallest_change_that_fits(
    changes: dict[str, Any], dtype: str, nodes: int, ssd: int, expected: str
) -> None:
    table = table_of("t", 2_340_000_000, 256, count=20, pooling=20, dtype=dtype)
    model = model_of(table, **{"batch_size": 512, **changes})
    with pytest.raises(InputError) as raised:
        plan_or_explain(model, machine(nodes, 8, 40 * GB, 3 * TB // 2, ssd))
    message = str(raised.value)
    assert "\n" not in message
    assert f"smallest change that fits: {expected}" in message


def test_proposed_number_of_nodes_fits_and_one_fewer_does_not() -> None:
    model = read_model("model_f")
    with pytest.raises(InputError, match=r"--nodes (\d+)") as raised:
        plan_or_explain(model, machine(10, 8, 40 * GB, 3 * TB // 2))
    nodes = int(str(raised.value).split("--nodes ")[1].split()[0])
    assert find_plan(model, machine(nodes, 8, 40 * GB, 3 * TB // 2), quick=True) is not None
    assert find_plan(model, machine(nodes - 1, 8, 40 * GB, 3 * TB // 2), quick=True) is None


def test_cpu_ranks_plan_without_device_memory() -> None:
    model = model_of(table_of("a", 10_000), table_of("b", 20_000))
    cpu = Topology(load_settings(PARAMS / "hardware" / "cpu.yaml", Hardware), 1, 4, 0, 8 * GB, 0)
    plan = find_plan(model, cpu)
    assert plan is not None
    check_memory(plan, model, cpu)
    assert {table.kernel for table in plan.tables} <= {"fused", "dense"}


@pytest.mark.parametrize(
    ("text", "expected"), [("40GB", 40 * GB), ("1.5TB", 3 * TB // 2), ("32GiB", 2**35), ("7", 7)]
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "40 gigs", "-1GB", "GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="such as 40GB"):
        parse_bytes(text)


def test_two_tables_of_one_name() -> None:
    with pytest.raises(InputError, match="'a' appears twice"):
        expand_tables(model_of(table_of("a", 10), table_of("a", 20)))


@pytest.mark.slow
def test_a_thousand_tables_on_128_ranks() -> None:
    model, topology = read_model("thousand_tables"), machine(16, 8, 40 * GB, 3 * TB // 2)
    plan = find_plan(model, topology)
    assert plan is not None
    check_memory(plan, model, topology)
    assert len(plan.tables) == 1000
    assert plan.imbalance < 1.02


@pytest.mark.slow
def test_a_hundred_trillion_parameters_on_1024_ranks() -> None:
    model, topology = read_model("hundred_trillion"), machine(128, 8, 40 * GB, 3 * TB // 2, 8 * TB)
    assert sum(table.parameters for table in expand_tables(model)) == pytest.approx(1e14, rel=0.01)
    plan = find_plan(model, topology)
    assert plan is not None
    check_memory(plan, model, topology)
    assert any(table.kernel == "key_value" for table in plan.tables)
    assert plan.imbalance < 1.5


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adagrad"])
def test_bytes_are_those_of_fbgemms_kernel(optimizer: Any, dtype: Any) -> None:
    """Adam is left out: FBGEMM has it on GPUs only."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    rows, dimension = 1000, 64
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dimension, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType[{"sgd": "EXACT_SGD"}.get(optimizer, f"EXACT_{optimizer.upper()}")],
        weights_precision=SparseType[dtype.upper()],
    )
    states = [state for table in kernel.split_optimizer_states() for state in table]
    tensors = [*kernel.split_embedding_weights(), *states]
    held = sum(t.numel() * t.element_size() for t in tensors)
    assert Table("t", rows, dimension, 1.0, 1.0, dtype).held_bytes(optimizer) == held
