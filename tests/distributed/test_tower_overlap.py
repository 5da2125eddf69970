"""Under the tower transform ids travel ahead: the bits of the plain loop, and in that order."""

import math
from contextlib import closing
from typing import Any

import pytest
from torch import Tensor

from recsys.data.loader import Batch
from recsys.models.factory import build_ranker
from recsys.towers.engine import tower_engine
from recsys.towers.exchange import PeerExchange
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.overlap import train_batches
from tests.support.comparing import same
from tests.support.launches import run_cases
from tests.support.towers import (
    SCHEMA,
    SEED,
    model_settings,
    random_partition,
    share,
    train_settings,
)

pytestmark = pytest.mark.slow

LAYOUT = (2, 2, 1)
SIZES = [32, 13, 32, 2, 7]  # rows of the global batches; most ranks have no row of the fourth
BAD = 1  # a batch with a NaN on the last rank
RUNS: dict[str, dict[str, Any]] = {
    "table_wise": {},
    "row_wise": {"sharding": "row_wise"},
    "quantised": {"communication": {"forward": "fp16", "backward": "bf16", "gradients": "bf16"}},
    "skips": {"skip_non_finite_batches": True, "dense_optimizer": "adam", "dense_clip_norm": 0.05},
}


def engine_with_towers(changes: dict[str, Any], architecture: str = "dcn") -> Engine:
    partition = random_partition(LAYOUT, 1)
    ranker = build_ranker(SCHEMA, model_settings(architecture), partition, SEED, "meta")
    return tower_engine(
        ranker, train_settings(LAYOUT[0] * LAYOUT[1], LAYOUT, **changes), SEED, partition
    )


def batches(engine: Engine, bad: int | None = None) -> list[Batch]:
    found = [share(rows, step, engine.rank, engine.world_size) for step, rows in enumerate(SIZES)]
    if bad is not None and engine.rank == engine.world_size - 1:
        found[bad].dense[0, 0] = math.nan
    return found


def train(changes: dict[str, Any], overlap: bool, bad: int | None) -> dict[str, Any]:
    """All batches, then two of them and the loop left early, with predictions between the steps."""
    engine = engine_with_towers({**changes, "overlap": overlap})
    losses, predictions = [], []
    for batch, loss in train_batches(engine, batches(engine, bad), engine.serving_loss):
        losses.append(float(loss))
        predictions.append(engine.predict(batch))
    with closing(train_batches(engine, batches(engine), engine.serving_loss)) as steps:
        losses += [float(loss) for (_, loss), _ in zip(steps, range(2), strict=False)]
    losses += [engine.train_step(batch, engine.serving_loss) for batch in batches(engine)]
    counts = engine.steps, engine.skipped_batches
    return {
        "losses": losses,
        "predictions": predictions,
        "counts": counts,
        "state": engine.gather_state(),
    }


def differing() -> dict[str, list[str]]:
    """On every rank: what differs from the plain loop, by run."""
    found = {}
    for name, changes in RUNS.items():
        bad = BAD if "skip_non_finite_batches" in changes else None
        plain, ahead = (train(changes, overlap, bad) for overlap in (False, True))
        assert plain["counts"][1] == (1 if bad else 0)
        found[name] = [key for key in plain if not same(plain[key], ahead[key])]
    return found


def test_losses_predictions_and_weights_are_bitwise_those_of_the_plain_loop() -> None:
    for found in run_on_ranks(differing, (), LAYOUT[0] * LAYOUT[1], 1):
        assert found == {name: [] for name in RUNS}


def order_of_work(overlap: bool) -> list[str]:
    """What happened on this rank, in order: ids of a batch sent to the peers ("send"), its loss
    ("compute")."""
    events: list[str] = []
    engine = engine_with_towers({"overlap": overlap})
    start = PeerExchange._start

    def recorded(exchange: PeerExchange, *arguments: Any) -> Any:
        events.append("send")
        return start(exchange, *arguments)

    def loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        events.append("compute")
        return engine.serving_loss(outputs, batch)

    PeerExchange._start = recorded  # type: ignore[method-assign]
    try:
        list(train_batches(engine, batches(engine)[:3], loss))
    finally:
        PeerExchange._start = start  # type: ignore[method-assign]
    return events


def test_the_next_batch_goes_to_the_peers_before_a_batch_is_computed() -> None:
    found = run_cases(
        order_of_work, {overlap: (LAYOUT[0] * LAYOUT[1], (overlap,)) for overlap in (True, False)}
    )
    assert found[True][0] == ["send", "send", "compute", "send", "compute", "compute"]
    assert found[False][0] == ["send", "compute"] * 3
