"""A bad step that is seen late: named on every rank, with what it began with; nothing is written of
it."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from recsys.data.loader import Batch
from recsys.sharding.communication import CommunicationOverflowError
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.non_finite import NonFiniteGradientError, NonFiniteLossError
from recsys.training.overlap import train_batches
from tests.support.engines import make_engine, settings_for, share

BAD = 3  # number of the batch, from 0
COUNT = 8
FP16 = {"communication": {"forward": "fp16", "backward": "fp16", "gradients": "fp32"}}


def batches(engine: Engine, with_infinity: bool) -> Iterator[Batch]:
    for step in range(COUNT):
        batch = share(32, step, engine.rank, engine.world_size)
        if with_infinity and step == BAD and engine.rank == engine.world_size - 1:
            batch.dense[0, 1] = math.inf
        yield batch


def train(where: str, overlap: bool) -> str:
    """Train on eight batches, the fourth of which is bad; the error."""
    changes = FP16 if where == "wire" else {}
    engine = make_engine(settings_for("row_wise", 2, overlap=overlap, **changes))
    taken = []

    def loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        taken.append(batch)
        losses = engine.serving_loss(outputs, batch)
        if len(taken) == BAD + 1 and where == "gradient":
            outputs["serving"].register_hook(lambda g: g * (math.nan if engine.rank else 1.0))
        return losses * 1e9 if len(taken) == BAD + 1 and where == "wire" else losses

    errors = NonFiniteLossError, NonFiniteGradientError, CommunicationOverflowError
    with pytest.raises(errors) as caught:
        list(train_batches(engine, batches(engine, where == "input"), loss))
    return f"{type(caught.value).__name__}: {caught.value}"


def errors() -> dict[str, str]:
    return {
        f"{where} {overlap}": train(where, overlap)
        for where in ("input", "gradient", "wire")
        for overlap in (True, False)
    }


def test_every_rank_names_the_step_and_what_it_began_with() -> None:
    first, second = run_on_ranks(errors, (), 2, 1)
    assert first == second
    for case, error in first.items():
        where = case.split()[0]
        if where == "wire":
            assert error.startswith("CommunicationOverflowError: communication.backward fp16"), case
            continue
        assert f"step {BAD + 1}:" in error, case
        if where == "input":
            assert error.startswith("NonFiniteLossError"), case
            assert "features: dense column 1" in error, case
        else:
            assert error.startswith("NonFiniteGradientError"), case
            assert "in the embeddings; features: " in error, case


def after_a_bad_step() -> Engine:
    engine = make_engine(settings_for("table_wise", 1))
    steps = train_batches(engine, batches(engine, with_infinity=True), engine.serving_loss)
    for _ in range(BAD + 1):
        next(steps)
    return engine


def steps_named_by_readers(folder: Path) -> list[int]:
    readers: list[Callable[[Engine], object]] = [
        lambda engine: engine.save(folder / "checkpoint"),
        lambda engine: engine.gather_state(),
        lambda engine: engine.predict(share(32, 0, 0, 1)),
    ]
    found = []
    for read in readers:
        engine = after_a_bad_step()
        with pytest.raises(NonFiniteLossError) as caught:
            read(engine)
        found.append(caught.value.step)
    return found


def test_whoever_reads_weights_is_told_first(tmp_path: Path) -> None:
    assert run_on_ranks(steps_named_by_readers, (tmp_path,), 1, 1)[0] == 3 * [BAD + 1]
    assert not (tmp_path / "checkpoint").exists()
