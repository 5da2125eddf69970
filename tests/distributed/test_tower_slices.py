"""Column slices of one feature in towers on different hosts: the flat model, bit for bit where sums
are exact."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed

from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.towers.engine import tower_engine
from recsys.training import engine as engine_module
from recsys.training.differential import TouchedRows
from recsys.training.launch import run_on_ranks
from recsys.training.overlap import train_batches
from tests.support.engines import everything
from tests.support.towers import (
    DIMENSION,
    EXACT_SIZES,
    FEATURES,
    KINDS,
    SCHEMA,
    SEED,
    SIZES,
    TOLERANCE,
    Products,
    few_bits,
    model_settings,
    share,
    signed,
    train_settings,
)

pytestmark = pytest.mark.slow

# On two groups of hosts one holds two slices of history, on four a tower does; both are mean-pooled
# lists.
TOWERS = [
    ["user:1of2", "shop", "tags:2of2"],
    ["history:2of4", "color", "history:4of4"],
    ["user:2of2", "history:3of4", "hour"],
    ["tags:1of2", "city", "history:1of4"],
]
PARTITION = Partition("manual", TOWERS, list(FEATURES))
LAYOUTS = [(2, 2, 1), (4, 1, 1), (4, 1, 2)]  # hosts, ranks per host, hosts per tower
CROSSED_FLAT = "crossed None"
WHOLE = Partition("manual", [[name] for name in FEATURES], list(FEATURES))


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the slices of each table put together."""
    found: dict[str, list[Tensor]] = {}
    for name, value in state.items():  # sorted, so slices come one after the other
        table, colon, _ = name.partition(":")
        found.setdefault(f"{table}.weight" if colon else name, []).append(value)
    return {
        name: torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        for name, parts in found.items()
    }


def train_exactly(
    layout: tuple[int, int, int] | None, partition: Partition, kind: str
) -> tuple[Tensor, Any]:
    """Pass-through towers and exact sums: this rank's first outputs, and the tables after
    training."""
    world_size, features = distributed.get_world_size(), list(FEATURES)
    pieces = partition.pieces(features)
    names = [piece.name for piece in pieces]
    changes = {"tower_dimension": DIMENSION, "first_order": False}
    chosen = model_settings("dlrm").model_copy(update=changes)
    chosen = chosen.model_copy(
        update={"tower_module": chosen.tower_module.model_copy(update={"kind": "pass_through"})}
    )
    towers = [[names.index(name) for name in tower] for tower in partition.towers]
    model = Products(SCHEMA, chosen, towers, "meta", pieces=pieces)
    rates = {"table_learning_rate": 1.0, "dense_learning_rate": 0.5}
    settings = train_settings(world_size, layout, sharding=kind).model_copy(update=rates)
    with mock.patch.object(engine_module, "initial_rows", few_bits):
        engine = tower_engine(model, settings, SEED, partition)
    outputs = engine.predict(share(SIZES[0], 0, engine.rank, engine.world_size))
    for step, rows in enumerate(EXACT_SIZES):
        engine.train_step(share(rows, step, engine.rank, engine.world_size), signed)
    state = {
        name: value
        for name, value in engine.gather_state().items()
        if name.startswith("embeddings.")
    }
    return outputs, joined(state)


def exact_cases() -> dict[tuple[Any, str], tuple[Tensor, Any]]:
    """On every rank, by layout and kind; without a layout the flat engine with whole tables."""
    found = {
        (layout, kind): train_exactly(layout, PARTITION, kind)
        for layout in LAYOUTS
        for kind in KINDS
    }
    return found | {(None, "table_wise"): train_exactly(None, WHOLE, "table_wise")}


def test_slices_on_other_hosts_give_the_bits_of_whole_tables_where_sums_are_exact() -> None:
    ranks = run_on_ranks(exact_cases, (), 4, 1)
    for results in ranks:
        flat, _ = results[None, "table_wise"]
        assert all(torch.equal(outputs, flat) for outputs, _ in results.values())
    expected = ranks[0][None, "table_wise"][1]
    for case, (_, state) in ranks[0].items():
        assert list(state) == list(expected)
        assert [
            name for name, value in expected.items() if not torch.equal(state[name], value)
        ] == [], case


def train(
    partition: Partition | None, layout: tuple[int, int, int] | None, **changes: Any
) -> tuple[Tensor, Any, Any]:
    """On every rank: outputs before training, weights after SIZES, the plan."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    model = model_settings("dcn").model_copy(update={"towers": partition is not None})
    kind = changes.pop("tower_kind", None)
    model = model.model_copy(
        update={"tower_module": model.tower_module.model_copy(update={"kind": kind})}
    )
    ranker = build_ranker(SCHEMA, model, partition, SEED, "meta")
    engine = tower_engine(ranker, train_settings(world_size, layout, **changes), SEED, partition)
    outputs = engine.predict(share(SIZES[0], 9, rank, world_size))
    batches = [share(rows, step, rank, world_size) for step, rows in enumerate(SIZES)]
    for _ in train_batches(engine, batches, engine.serving_loss):
        pass
    return outputs, engine.gather_state(), engine.plan_summary()


def cases(optimizer: str) -> dict[str, tuple[Tensor, Any, Any]]:
    changes = {"table_optimizer": optimizer}
    found = {"whole": train(None, None, **changes)}
    for layout in (None, *LAYOUTS):
        found[f"passed {layout}"] = train(PARTITION, layout, tower_kind="pass_through", **changes)
        found[f"crossed {layout}"] = train(PARTITION, layout, **changes)
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_training_slices_on_other_hosts_is_training_the_flat_model(optimizer: str) -> None:
    ranks = run_on_ranks(cases, (optimizer,), 4, 1)
    for results in ranks:
        for case, (outputs, _, _) in results.items():
            reference = CROSSED_FLAT if case.startswith("crossed") else "whole"
            assert torch.equal(outputs, results[reference][0]), case
    results = ranks[0]
    for case, (_, state, plan) in results.items():
        assert {row["table"] for row in plan if case != "whole"} <= {
            f"table_{n}" for tower in TOWERS for n in tower
        }
        # A slice has a row-wise accumulator of its own, so only its own model, on one host, is the
        # same.
        if case.startswith("passed") and optimizer != "rowwise_adagrad":
            compare(joined(state), joined(results["whole"][1]), case)
        if case.startswith("crossed"):
            compare(state, results[CROSSED_FLAT][1], case)


def compare(state: dict[str, Tensor], expected: dict[str, Tensor], case: str) -> None:
    assert list(state) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=TOLERANCE, msg=f"{case} {name}")


def save_and_load(folder: Path) -> list[str]:
    """Save under the transform, load into the flat engine: names of weights and states that
    differ."""
    world_size, states = distributed.get_world_size(), []
    for layout in ((2, 2, 1), None):
        ranker = build_ranker(SCHEMA, model_settings("dcn"), PARTITION, SEED + len(states), "meta")
        engine = tower_engine(
            ranker, train_settings(world_size, layout, table_optimizer="adagrad"), SEED, PARTITION
        )
        if layout is not None:
            engine.train_step(share(SIZES[0], 0, engine.rank, world_size), engine.serving_loss)
            engine.save(folder / "saved")
        else:
            engine.load(folder / "saved")
        states.append(everything(engine))
    saved, loaded = states
    assert saved.keys() == loaded.keys()
    assert any(":1of2" in name and "momentum" in name for name in saved) or engine.rank
    return [name for name, value in saved.items() if not torch.equal(value, loaded[name])]


def test_checkpoints_of_slices_are_the_same_with_and_without_the_transform(tmp_path: Path) -> None:
    assert run_on_ranks(save_and_load, (tmp_path,), 4, 1) == [[]] * 4


def touched() -> dict[str, list[int]]:
    """Rows of each table that one training step looks up."""
    ranker = build_ranker(SCHEMA, model_settings("dcn"), PARTITION, SEED, "meta")
    engine = tower_engine(ranker, train_settings(1, None), SEED, PARTITION)
    rows = TouchedRows(engine.module)
    engine.train_step(share(SIZES[0], 0, 0, 1), engine.serving_loss)
    return {name: found.tolist() for name, found, _ in rows.rows()}


def test_every_slice_of_a_row_that_is_trained_on_counts_as_touched() -> None:
    rows = run_on_ranks(touched, (), 1, 1)[0]
    for number in (1, 2):
        ids = share(SIZES[0], 0, 0, 1).sparse["user"].values().unique().tolist()
        assert rows[f"embeddings.embedding_bags.table_user:{number}of2.weight"] == ids
