"""What the machine and the model allow: GEMM rate at the model's shapes, FLOPs per sample, the
dense part alone."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.training.cases import FLOAT_BYTES, Model
from bench.training.contenders import dense_logit, dense_ranker
from bench.training.windows import TABLES
from recsys.data.schema import Schema
from recsys.models.ranker import Ranker

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
COUNTED_ROWS = 8
COPIED_FLOATS = 2**26  # 256 MiB: far more than caches hold
REPEATS = 5


def measure_machine(model: Model, schema: Schema, threads: list[int]) -> dict[str, float]:
    """FLOPs per sample of a training step's dense part, and rates in FLOP/s.

    Keys: "flops"; "gemm <precision> <threads>": torch.mm at the shapes of every linear layer,
    forward and both backward products; "dense <precision> <threads>": forward and backward of the
    dense part; "memory <threads>": bytes per second of a copy, read and written; "table_bytes":
    what a sample's rows move through memory, read for the forward pass, read and written after it.
    """
    ranker = dense_ranker(schema, model)
    found = {"flops": step_flops(schema, model)}
    found["table_bytes"] = 3.0 * TABLES * model.dimension * FLOAT_BYTES
    before = torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        found[f"memory {count}"] = _memory_rate()
        for name, dtype in PRECISIONS.items():
            found[f"gemm {name} {count}"] = _gemm_rate(ranker, model.batch_size, dtype)
            step = _dense_step(ranker, schema, model, model.batch_size, dtype)
            found[f"dense {name} {count}"] = found["flops"] * model.batch_size / _seconds(step)
    torch.set_num_threads(before)
    return found


def step_flops(schema: Schema, model: Model) -> float:
    """FLOPs of a training step's dense part per sample, forward and backward."""
    ranker = dense_ranker(schema, model)
    with FlopCounterMode(display=False) as counter:
        _dense_step(ranker, schema, model, COUNTED_ROWS, torch.float32)()
    return counter.get_total_flops() / COUNTED_ROWS


def _dense_step(
    ranker: Ranker, schema: Schema, model: Model, rows: int, dtype: torch.dtype
) -> Callable[[], None]:
    """Forward and backward of everything but the tables, without an optimiser."""
    dense = torch.randn(rows, schema.dense_width)
    embeddings = torch.randn(rows, TABLES, model.dimension, requires_grad=True)

    def step() -> None:
        ranker.zero_grad()
        embeddings.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logit = dense_logit(ranker, dense, embeddings)
        logit.float().sum().backward()

    return step


def _gemm_rate(ranker: Ranker, rows: int, dtype: torch.dtype) -> float:
    seconds = flops = 0.0
    for layer in [module for module in ranker.modules() if isinstance(module, nn.Linear)]:
        inputs = torch.randn(rows, layer.in_features, dtype=dtype)
        outputs = torch.randn(rows, layer.out_features, dtype=dtype)
        weight = torch.randn(layer.in_features, layer.out_features, dtype=dtype)
        for left, right in ((inputs, weight), (outputs, weight.t()), (inputs.t(), outputs)):
            seconds += _seconds(lambda left=left, right=right: torch.mm(left, right))
            flops += 2.0 * rows * layer.in_features * layer.out_features
    return flops / seconds


def _memory_rate() -> float:
    source = torch.ones(COPIED_FLOATS)
    target = torch.empty_like(source)
    return 2.0 * COPIED_FLOATS * FLOAT_BYTES / _seconds(lambda: target.copy_(source))


def _seconds(function: Callable[[], object]) -> float:
    """Median over a few calls, after one."""
    times = []
    for _ in range(REPEATS + 1):
        started = perf_counter()
        function()
        times.append(perf_counter() - started)
    return median(times[1:])
