"""Overlapped steps give the bits of the plain loop, in every kind of sharding and on 1, 2 and 4
gloo ranks."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from recsys.data.loader import Batch
from recsys.data.prefetch import THREAD_NAME
from recsys.models.factory import build_ranker
from recsys.training.engine import Engine, sharded_collections
from recsys.training.launch import run_on_ranks
from recsys.training.non_finite import NonFiniteLossError
from recsys.training.overlap import load_ahead, train_batches
from recsys.training.settings import TrainSettings
from tests.support.comparing import same
from tests.support.launches import run_cases
from tests.support.sharded import CASES, KINDS, MIXED, MODEL, SCHEMA, SEED, share, train_settings

# Rows of the global batches; on 4 ranks two have no row of the fourth
SIZES = [32, 13, 32, 2, 32, 7]
LENGTHS = (4, 0, 1, 2)  # of the loops that are compared
SECONDS = 15.0  # to start two ranks, fail and end
HARD = {
    "schedule": {"warmup_steps": 2, "decay": "cosine", "decay_steps": 5},
    "dense_clip_norm": 0.05,
    "dense_optimizer": "adam",
    "skip_non_finite_batches": True,
    "table_optimizer": "adagrad",
}
RUNS = {kind: CASES[f"{kind}-sgd"] for kind in KINDS} | {
    "rowwise": CASES["row_wise-rowwise_adagrad"],
    "grid on hosts of one": CASES["grid_on_hosts_of_one-sgd"],
    "mixed, all options": {"table_sharding": MIXED, **HARD},
    "bfloat16": {"table_sharding": MIXED, "bf16": True},
}


class LostFileError(Exception):
    """Raised by a loader."""


def batches(
    sizes: list[int], bad: int | None = None, fails_at: int | None = None
) -> Iterator[Batch]:
    """This rank's shares; batch ``bad`` has a NaN on the last rank, whose loader raises at
    ``fails_at``."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    for step, rows in enumerate(sizes):
        if step == fails_at and rank == world_size - 1:
            raise LostFileError(f"batch {step} on rank {rank}")
        batch = share(rows, step, rank, world_size)
        if step == bad and rank == world_size - 1:
            batch.dense[0, 0] = math.nan
        yield batch


def engine_with(changes: dict[str, Any]) -> Engine:
    settings = train_settings(distributed.get_world_size(), **changes)
    return Engine(build_ranker(SCHEMA, MODEL, None, SEED, "meta"), settings, SEED)


def weighted(engine: Engine) -> Any:
    """A loss function of our own: it reads the batch too."""
    return lambda outputs, batch: engine.serving_loss(outputs, batch) * (1.0 + batch.label)


def train(
    changes: dict[str, Any], overlap: bool, lengths: tuple[int, ...], bad: int | None
) -> dict[str, Any]:
    """Losses, predictions made between the steps, counts and weights of training on ``lengths``
    batches in turn; without ``overlap`` by TorchRec's own forward pass, also on a rank alone."""
    engine = engine_with({**changes, "overlap": overlap})
    if not overlap:
        for module in sharded_collections(engine.module).values():
            vars(module).pop("forward", None)
    losses, predictions = [], []
    for length in lengths:
        for batch, loss in train_batches(
            engine, load_ahead(engine, batches(SIZES[:length], bad)), weighted(engine)
        ):
            losses.append(float(loss))
            predictions.append(engine.predict(batch))
    counts = (engine.steps, engine.skipped_batches)
    return {
        "losses": losses,
        "predictions": predictions,
        "counts": counts,
        "state": engine.gather_state(),
    }


def compare_all(runs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """On every rank: what differs between the plain loop and the overlapped one, by run."""
    differences = {}
    for name, changes in runs.items():
        bad = 2 if changes.get("skip_non_finite_batches") else None
        plain, overlapped = (train(changes, overlap, LENGTHS, bad) for overlap in (False, True))
        assert plain["counts"] == ((sum(LENGTHS) - 1, 1) if bad else (sum(LENGTHS), 0))
        differences[name] = [key for key in plain if not same(plain[key], overlapped[key])]
    return differences


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_predictions_and_weights_are_bitwise_those_of_the_plain_loop(
    world_size: int,
) -> None:
    for differences in run_on_ranks(compare_all, (RUNS,), world_size, 1):
        assert differences == {name: [] for name in RUNS}


def order_of_work(overlap: bool) -> list[str]:
    """What happened on this rank, in order: ids of a batch sent ("send"), its loss computed
    ("compute")."""
    events: list[str] = []
    send = ShardedEmbeddingBagCollection.input_dist

    def recorded(module: ShardedEmbeddingBagCollection, *arguments: Any, **named: Any) -> Any:
        events.append("send")
        return send(module, *arguments, **named)

    engine = engine_with({"sharding": "row_wise", "overlap": overlap})

    def loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        events.append("compute")
        return engine.serving_loss(outputs, batch)

    ShardedEmbeddingBagCollection.input_dist = recorded  # type: ignore[method-assign]
    try:
        list(train_batches(engine, batches(SIZES[:3]), loss))
    finally:
        ShardedEmbeddingBagCollection.input_dist = send  # type: ignore[method-assign]
    return events


def sends_of_a_rank_alone(changes: dict[str, Any]) -> list[int]:
    """Ids that TorchRec distributes in the first step and in all of three, then those of a
    prediction."""
    sent: list[int] = []
    send = ShardedEmbeddingBagCollection.input_dist

    def recorded(module: ShardedEmbeddingBagCollection, *arguments: Any, **named: Any) -> Any:
        sent.append(1)
        return send(module, *arguments, **named)

    engine = engine_with(changes)
    ShardedEmbeddingBagCollection.input_dist = recorded  # type: ignore[method-assign]
    try:
        steps = train_batches(engine, batches(SIZES[:3]), engine.serving_loss)
        counts = [len(sent) for _ in steps]
        engine.predict(next(batches(SIZES)))
    finally:
        ShardedEmbeddingBagCollection.input_dist = send  # type: ignore[method-assign]
    return [counts[0], counts[-1], len(sent)]


def test_a_rank_alone_sends_nothing_but_where_a_plan_or_a_wire_format_wants_it() -> None:
    whole = {"sharding": "table_wise"}
    cases = {
        "whole tables": (1, (whole,)),
        "split rows": (1, ({"sharding": "row_wise"},)),
        "rounded": (1, ({**whole, "communication": {"forward": "fp16"}},)),
    }
    found = {name: ranks[0] for name, ranks in run_cases(sends_of_a_rank_alone, cases).items()}
    assert found == {"whole tables": [1, 1, 1], "split rows": [1, 3, 4], "rounded": [1, 3, 4]}


def test_the_next_batch_is_on_its_way_before_a_batch_is_computed() -> None:
    assert run_on_ranks(order_of_work, (True,), 2, 1)[0] == [
        "send",
        "send",
        "compute",
        "send",
        "compute",
        "compute",
    ]
    assert run_on_ranks(order_of_work, (False,), 1, 1)[0] == ["send", "compute"] * 3


def save_at_every_batch(changes: dict[str, Any], folder: Path) -> list[dict[str, Tensor]]:
    """Train 4 batches with a checkpoint after each; then the weights that a fresh engine reads from
    each."""
    engine = engine_with(changes)
    ahead = load_ahead(engine, batches(SIZES[:4]))
    for index, _ in enumerate(train_batches(engine, ahead, engine.serving_loss)):
        engine.save(folder / str(index), {"steps": engine.steps})
    states = []
    for index in range(4):
        fresh = engine_with({**changes, "overlap": False})
        assert fresh.load(folder / str(index)) == {"steps": index + 1}
        states.append(fresh.gather_state())
    return states


def test_a_checkpoint_holds_what_was_trained_whatever_is_read_ahead(tmp_path: Path) -> None:
    kinds = {"table_sharding": MIXED, "table_optimizer": "adagrad"}
    ways: dict[str, dict[str, Any]] = {
        "plain": {"overlap": False},
        "one ahead": {"overlap": True, "prefetch_batches": 1},
        "five ahead": {"overlap": True, "prefetch_batches": 5},
    }
    cases = {name: (2, ({**kinds, **changes}, tmp_path / name)) for name, changes in ways.items()}
    found = run_cases(save_at_every_batch, cases)
    assert same(found["one ahead"][0], found["plain"][0])
    assert same(found["five ahead"][0], found["plain"][0])


def stop_early(overlap: bool) -> dict[str, Any]:
    """Leave the loop after 2 of 6 batches, then train on the last ones: losses, weights, threads
    left."""
    engine = engine_with({"table_sharding": MIXED, "overlap": overlap})
    losses = []
    with (
        closing(load_ahead(engine, batches(SIZES))) as ahead,
        closing(train_batches(engine, ahead, engine.serving_loss)) as steps,
    ):
        losses += [float(loss) for (_, loss), _ in zip(steps, range(2), strict=False)]
    left = [thread.name for thread in threading.enumerate() if thread.name == THREAD_NAME]
    losses += [engine.train_step(batch, engine.serving_loss) for batch in batches(SIZES[3:])]
    return {"losses": losses, "state": engine.gather_state(), "threads": left}


def test_a_loop_left_early_leaves_the_engine_as_the_plain_loop_does() -> None:
    found = run_cases(stop_early, {overlap: (2, (overlap,)) for overlap in (False, True)})
    plain, overlapped = found[False][0], found[True][0]
    assert same(overlapped, plain)
    assert plain["threads"] == []


def train_until_the_loader_fails(settings: TrainSettings, fails_at: int) -> None:
    engine = Engine(build_ranker(SCHEMA, MODEL, None, SEED, "meta"), settings, SEED)
    ahead = load_ahead(engine, batches(SIZES, fails_at=fails_at))
    for _ in train_batches(engine, ahead, engine.serving_loss):
        pass


@pytest.mark.parametrize(("world_size", "fails_at"), [(1, 3), (2, 0), (2, 1), (2, 4)])
def test_a_loader_that_fails_on_one_rank_ends_the_run_with_its_error(
    world_size: int, fails_at: int
) -> None:
    settings = train_settings(world_size, table_sharding=MIXED, overlap=True)
    started = time.monotonic()
    with pytest.raises(LostFileError) as caught:
        run_on_ranks(train_until_the_loader_fails, (settings, fails_at), world_size, 1)
    assert str(caught.value) == f"batch {fails_at} on rank {world_size - 1}"
    assert time.monotonic() - started < SECONDS


def train_on_infinity() -> None:
    engine = engine_with({"overlap": True})
    for _ in train_batches(engine, batches(SIZES, bad=3), engine.serving_loss):
        pass


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_non_finite_loss_ends_the_run_with_its_step(world_size: int) -> None:
    with pytest.raises(NonFiniteLossError) as caught:
        run_on_ranks(train_on_infinity, (), world_size, 1)
    assert caught.value.step == 4


def compute_on_other_ids() -> None:
    engine = engine_with({"overlap": True})
    forward = engine.module.forward
    engine.module.forward = lambda dense, sparse: forward(dense, sparse.to(torch.device("cpu")))
    list(train_batches(engine, batches(SIZES), engine.serving_loss))


def test_ids_that_the_model_has_changed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"embeddings.*overlap: false"):
        run_on_ranks(compute_on_other_ids, (), 2, 1)
