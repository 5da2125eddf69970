"""Whether the dense part uses bfloat16 on this machine."""

import sys
import time
from functools import cache

import torch
from torch import distributed

from recsys.training.settings import TrainSettings

# Keys of torch.cpu.get_capabilities: instructions for bfloat16 matrix products
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
GEMM_SIZE = 256  # 0.03 GFLOP: 26 ms at the slowest rate seen, 1.3 GFLOP/s


def computes_in_bf16(settings: TrainSettings) -> bool:
    """Whether the dense part uses bfloat16; with ``auto``, if every rank's machine has instructions
    for it. Collective with ``auto``.

    With ``bf16: true``, a machine without these instructions gives a warning: it takes several
    times as long.
    """
    if settings.bf16 == "auto":
        has = torch.tensor(float(has_bf16(settings.device)))
        distributed.all_reduce(has, op=distributed.ReduceOp.MIN)
        return bool(has)
    if settings.bf16 and not has_bf16(settings.device) and distributed.get_rank() == 0:
        _warn(settings.where("bf16"))
    return settings.bf16


def has_bf16(device: str) -> bool:
    """Whether this machine has instructions for bfloat16 matrix products."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


@cache  # once per process, not per engine
def _warn(where: str) -> None:
    ratio = _gemm_seconds(torch.bfloat16) / _gemm_seconds(torch.float32)
    print(
        f"{where}: this machine has no instructions for bfloat16: a product of matrices takes "
        f"{ratio:.1f} times as long as in fp32; use false or auto",
        file=sys.stderr,
        flush=True,
    )


def _gemm_seconds(dtype: torch.dtype) -> float:
    square = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=dtype)
    torch.mm(square, square)  # one-time set-up
    started = time.perf_counter()
    torch.mm(square, square)
    return time.perf_counter() - started
