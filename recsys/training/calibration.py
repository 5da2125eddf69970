"""Measure this machine's performance in a few seconds: memory copies, gloo over the loopback,
GEMM."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import distributed

from recsys.config import load_settings
from recsys.planning.hardware import Hardware
from recsys.training.launch import run_on_ranks
from recsys.units import FLOAT_BYTES, GIGA

RANKS = 2
REPEATS = 5
COPY_FLOATS = 32 * 2**20  # 128 MiB, well beyond the caches
EXCHANGE_FLOATS = 4 * 2**20
SMALL_FLOATS = RANKS
GEMM_SIZE = 1024
DIGITS = 4


def calibrate(folder: Path, path: Path) -> Hardware:
    """Measure, write the result to ``path``, and return it.

    Values that are not measured (costs of a shard and of a step, reserve) come from
    ``folder/cpu.yaml``.
    """
    guessed = load_settings(folder / "cpu.yaml", Hardware)
    large, small = run_on_ranks(_exchange_seconds, (), RANKS, 1)[0]
    share = (RANKS - 1) / RANKS  # of a rank's bytes that go to other ranks
    bandwidth = _rounded(EXCHANGE_FLOATS * FLOAT_BYTES * share / large / GIGA)
    measured = guessed.model_copy(
        update={
            "ddr": guessed.ddr.model_copy(update={"gb_s": _rounded(_copy_gb_s())}),
            "intra_gb_s": bandwidth,
            "cross_gb_s": bandwidth,
            "reduce_gb_s": bandwidth,
            "collective_ms": _rounded(small * 1000),
            "dense_tflops": _rounded(_gemm_tflops()),
            "cores": os.cpu_count(),
            "source": f"measured by calibrate: {RANKS} gloo ranks over the loopback, "
            f"{torch.get_num_threads()} threads",
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(measured.model_dump(), sort_keys=False))
    return measured


def _copy_gb_s() -> float:
    """10^9 bytes read and written per second by a large copy."""
    source, target = torch.zeros(COPY_FLOATS), torch.zeros(COPY_FLOATS)
    return 2 * COPY_FLOATS * FLOAT_BYTES / _best_seconds(lambda: target.copy_(source)) / GIGA


def _gemm_tflops() -> float:
    first, second = torch.ones(GEMM_SIZE, GEMM_SIZE), torch.ones(GEMM_SIZE, GEMM_SIZE)
    return 2 * GEMM_SIZE**3 / _best_seconds(lambda: first @ second) / 10**12


def _exchange_seconds() -> tuple[float, float]:
    """Seconds for a large and for a small all-to-all; runs on every rank."""
    return _all_to_all_seconds(EXCHANGE_FLOATS), _all_to_all_seconds(SMALL_FLOATS)


def _all_to_all_seconds(floats: int) -> float:
    source, target = torch.zeros(floats), torch.empty(floats)
    return _best_seconds(lambda: distributed.all_to_all_single(target, source))


def _best_seconds(action: Callable[[], object]) -> float:
    """The shortest of a few runs, after a warm-up run."""
    action()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
