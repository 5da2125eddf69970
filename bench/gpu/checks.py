"""Is training on the device right? Each function is one part: its answer as lines of Markdown.

Every one runs on one rank of the device, small enough for a CPU.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from recsys.config import InputError
from recsys.data.loader import Batch
from recsys.models.factory import build_ranker
from recsys.planning.hardware import GPU
from recsys.planning.tables import SHARDINGS, computes_exactly
from recsys.training.engine import Engine
from recsys.training.overlap import load_ahead, train_batches
from recsys.training.settings import TrainSettings
from recsys.units import BYTES_PER_GIB, GIGA, MEGA
from tests.support.batches import random_share, schema_of
from tests.support.engines import SEED, make_engine, model_settings, settings_for, share

Device = Literal["cpu", "cuda"]
OPTIMIZERS = {
    "cpu": ("sgd", "rowwise_adagrad", "adagrad"),
    "cuda": ("sgd", "rowwise_adagrad", "adagrad", "adam"),
}
TOLERANCE = 1e-5  # of weights after STEPS steps in float32, whose sums have another order
STEPS = 4
ROWS = 64
LARGE = {"large": (2_000_000, "id"), "small": (1000, "id")}  # 64 MB and little, of width 8
LARGE_SETTINGS: dict[str, Any] = {
    "world_size": 1,
    "global_batch_size": ROWS,
    "table_optimizer": "rowwise_adagrad",
}
ROOMS = (3.0 * MEGA, 30.0 * MEGA)
WAIT = "called a synchronizing CUDA operation"  # what set_sync_debug_mode warns of


def kinds(device: Device) -> list[str]:
    """Every kind of sharding under every optimiser, beside one table per rank on the CPU."""
    lines = ["| kind | optimiser | largest difference of a weight | |", "|---|---|---:|---|"]
    for optimizer in OPTIMIZERS[device]:
        expected = None  # the CPU has no kernel for Adam: the first kind is what others must equal
        if optimizer != "adam":
            expected = _trained("cpu", "table_wise", optimizer)
        for kind in SHARDINGS:
            if not computes_exactly(kind, optimizer):
                continue
            try:
                found = _trained(device, kind, optimizer)
            except (InputError, ValueError) as error:
                lines.append(f"| {kind} | {optimizer} | | refused: {_first_line(error)} |")
                continue
            expected = expected or found
            difference = max(
                float((found[name] - value).abs().max()) for name, value in expected.items()
            )
            lines.append(f"| {kind} | {optimizer} | {difference:.1e} | {_mark(difference)} |")
    return lines


def host_memory(device: Device) -> list[str]:
    """A table that the device has no room for, in the host's memory (UVM), all or all but a
    cache."""
    if device == "cpu":
        return ["A CPU has no UVM."]
    expected = _train(_large_engine(TrainSettings(**LARGE_SETTINGS)), _large_batches())
    lines = ["| room | kernel | cached | largest difference of a weight | |"]
    lines += ["|---:|---|---:|---:|---|"]
    for room in ROOMS:
        engine = _large_engine(host_memory_settings(room))
        found = _train(engine, _large_batches())
        difference = max(float((found[n] - value).abs().max()) for n, value in expected.items())
        row = engine.plan_summary()[0]
        lines.append(
            f"| {room / MEGA:.0f} MB | {row.get('kernel', 'WRONG: on the device')} | "
            f"{row.get('load_factor') or 0.0:.1%} | {difference:.1e} | {_mark(difference)} |"
        )
    return lines


def host_memory_settings(room: float) -> TrainSettings:
    """A GPU that has ``room`` bytes for tables."""
    memory_gb = (GPU.reserved_gb * GIGA + room) / BYTES_PER_GIB
    memory = {"memory_gb": memory_gb, "host_memory_gb": 4.0}
    return TrainSettings.model_validate({**LARGE_SETTINGS, "device": "cuda", **memory})


def waits(device: Device) -> list[str]:
    """What the host waits for in a step, by CUDA's own debug mode."""
    if device == "cpu":
        return ["A CPU is not waited for; tests/distributed/test_host_waits.py counts its reads."]
    engine = _engine(device, "table_wise", "rowwise_adagrad")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        steps = train_batches(engine, load_ahead(engine, _batches(12)), engine.serving_loss)
        for index, _ in enumerate(steps):
            if index == 4:
                torch.cuda.set_sync_debug_mode("warn")
            if index == 8:
                torch.cuda.set_sync_debug_mode("default")
    places: dict[str, int] = {}
    for one in said:
        if WAIT in str(one.message):
            place = f"{Path(one.filename).name}:{one.lineno}"
            places[place] = places.get(place, 0) + 1
    table = [f"| {place} | {count / 4:.2f} |" for place, count in sorted(places.items())]
    return (
        ["| place | waits per step |", "|---|---:|", *table] if table else ["None in four steps."]
    )


def overlap(device: Device) -> list[str]:
    """The same bits with the next batch under way as without."""
    found = {}
    for is_on in (True, False):
        engine = _engine(device, "row_wise", "rowwise_adagrad", overlap=is_on)
        steps = train_batches(engine, load_ahead(engine, _batches(STEPS)), engine.serving_loss)
        losses = [float(loss) for _, loss in steps]
        found[is_on] = torch.tensor(losses), engine.gather_state()
    same = torch.equal(found[True][0], found[False][0]) and _same(found[True][1], found[False][1])
    return [f"Losses and weights have the same bits: {'yes' if same else 'NO'}."]


def checkpoints(device: Device) -> list[str]:
    """Saved, read under another plan, and gone on from: the same bits."""
    through = _engine(device, "table_wise", "rowwise_adagrad")
    for batch in _batches(STEPS):
        through.train_step(batch, through.serving_loss)
    first = _engine(device, "table_wise", "rowwise_adagrad")
    for batch in _batches(STEPS // 2):
        first.train_step(batch, first.serving_loss)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        first.save(Path(folder) / "one")
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        again = _engine(device, "table_wise", "rowwise_adagrad")
        other = _engine(device, "row_wise", "rowwise_adagrad")
        for engine in (again, other):
            engine.load(Path(folder) / "one")
    is_read = _same(other.gather_state(), first.gather_state())
    for batch in list(_batches(STEPS))[STEPS // 2 :]:
        again.train_step(batch, again.serving_loss)
    is_whole = _same(again.gather_state(), through.gather_state())
    return [
        f"{size / MEGA:.2f} MB in {seconds:.2f} s. The same bits read by another plan: "
        f"{'yes' if is_read else 'NO'}. A run that goes on has those of one without a stop: "
        f"{'yes' if is_whole else 'NO'}."
    ]


def bf16(device: Device) -> list[str]:
    """The dense part in bfloat16: how far its losses are from those in float32."""
    losses = {}
    for is_on in (False, True):
        engine = _engine(device, "table_wise", "rowwise_adagrad", bf16=is_on)
        losses[is_on] = [engine.train_step(batch, engine.serving_loss) for batch in _batches(STEPS)]
    difference = max(abs(a - b) for a, b in zip(losses[True], losses[False], strict=True))
    is_close = math.isfinite(difference) and difference < 0.02
    return [f"Largest difference of a loss: {difference:.1e} ({'ok' if is_close else 'WRONG'})."]


def _engine(device: Device, kind: str, optimizer: str, **changes: Any) -> Engine:
    settings = settings_for(kind, 1, device=device, table_optimizer=optimizer, **changes)
    return make_engine(settings)


def _batches(count: int) -> Iterator[Batch]:
    return (share(ROWS, step, 0, 1) for step in range(count))


def _large_engine(settings: TrainSettings) -> Engine:
    model = build_ranker(schema_of(LARGE), model_settings(), None, SEED, "meta")
    return Engine(model, settings, SEED)


def _large_batches() -> Iterator[Batch]:
    width = schema_of(LARGE).dense_width
    return (random_share(LARGE, width, ROWS, step, 0, 1) for step in range(STEPS))


def _trained(device: Device, kind: str, optimizer: str) -> dict[str, Tensor]:
    return _train(_engine(device, kind, optimizer), _batches(STEPS))


def _train(engine: Engine, batches: Iterator[Batch]) -> dict[str, Tensor]:
    for batch in batches:
        engine.train_step(batch, engine.serving_loss)
    return engine.gather_state()


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _mark(difference: float) -> str:
    return "ok" if difference <= TOLERANCE else "WRONG"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].replace("|", "/")


def is_right(lines: Sequence[str]) -> bool:
    """Whether a part's lines say that all of it was right."""
    return not any("WRONG" in line or "NO." in line for line in lines)
