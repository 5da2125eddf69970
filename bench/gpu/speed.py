"""How fast is training on the device, beside TorchRec's own loop and the rate of its matrices?"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.gpu.checks import Device
from bench.training.cases import ADAGRAD_RATE, ADAM_RATE, SEED, Model
from bench.training.machine import step_flops
from bench.training.torchrec_loop import TorchRecTrainer
from recsys.data.loader import Batch, WindowReader
from recsys.models.factory import build_ranker
from recsys.training.engine import Engine
from recsys.training.overlap import load_ahead, train_batches
from recsys.training.settings import TrainSettings
from recsys.units import GIGA

WARM_UP = 3
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEMM = {"cpu": 512, "cuda": 8192}  # rows and columns of the matrices that say what the device can


@dataclass(frozen=True)
class Size:
    """Models and batches to time: ``seconds`` each."""

    architectures: tuple[str, ...]
    dimension: int
    batches: tuple[int, ...]
    table_rows: int
    seconds: float


TINY = Size(("dlrm",), 8, (64,), 200, 0.1)
FULL = Size(("dlrm", "dcn"), 128, (8192, 16_384, 32_768, 65_536), 1_000_000, 4.0)


def speed(device: Device, size: Size, windows: Path) -> list[str]:
    """Samples per second, and the part of the rate of one large product of matrices, by model,
    batch and contender."""
    reader = WindowReader(windows)
    peaks = {name: gemm_rate(device, dtype) for name, dtype in PRECISIONS.items()}
    lines = [
        "; ".join(f"{name}: {rate / GIGA:,.0f} GFLOP/s" for name, rate in peaks.items())
        + f" in a product of {GEMM[device]} x {GEMM[device]} matrices.",
        "",
        "| model, batch | contender | samples/s | of the GEMM rate |",
        "|---|---|---:|---:|",
    ]
    for architecture, batch_size in itertools.product(size.architectures, size.batches):
        model = Model(architecture, size.dimension, batch_size, size.table_rows)  # type: ignore[arg-type]
        flops = step_flops(reader.schema, model)
        batches = list(
            itertools.islice(reader.label_batches(reader.windows[0], batch_size, 0, 1), 4)
        )
        contenders: dict[str, tuple[str, Callable[[Iterator[Batch]], Iterator[object]]]] = {
            "engine, fp32": ("fp32", lambda b, m=model: _engine_steps(device, m, reader, False, b)),
            "engine, bf16": ("bf16", lambda b, m=model: _engine_steps(device, m, reader, True, b)),
            "TorchRec's pipeline, fp32": (
                "fp32",
                lambda b, m=model: TorchRecTrainer(device, m, reader.schema).steps(b),
            ),
        }
        for name, (precision, steps) in contenders.items():
            rate = _samples_per_second(steps(itertools.cycle(batches)), batch_size, size.seconds)
            lines.append(
                f"| {architecture} {size.dimension}, {batch_size} | {name} | {rate:,.0f} | "
                f"{rate * flops / peaks[precision]:.0%} |"
            )
    return lines


def gemm_rate(device: Device, dtype: torch.dtype) -> float:
    """FLOP/s of one product of square matrices, the best of five."""
    size = GEMM[device]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _engine_steps(
    device: Device, model: Model, reader: WindowReader, bf16: bool, batches: Iterator[Batch]
) -> Iterator[object]:
    settings = TrainSettings.model_validate(
        {
            "world_size": 1,
            "device": device,
            "global_batch_size": model.batch_size,
            "table_optimizer": "rowwise_adagrad",
            "table_learning_rate": ADAGRAD_RATE,
            "dense_learning_rate": ADAM_RATE,
            "sharding": "table_wise",
            "memory_gb": 60.0,
            "bf16": bf16,
        }
    )
    ranker = build_ranker(reader.schema, model.settings(), None, SEED, "meta")
    engine = Engine(ranker, settings, SEED)
    yield from train_batches(engine, load_ahead(engine, batches), engine.serving_loss)


def _samples_per_second(steps: Iterator[object], batch_size: int, seconds: float) -> float:
    for _ in range(WARM_UP):
        next(steps)
    _wait("cuda")
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(steps)
        count += 1
    _wait("cuda")
    elapsed = time.perf_counter() - started
    if hasattr(steps, "close"):
        steps.close()  # type: ignore[attr-defined]
    return count * batch_size / elapsed


def _wait(device: Device) -> None:
    if device == "cuda" and torch.cuda.is_available():
        torch.cuda.synchronize()
