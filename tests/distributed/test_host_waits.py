"""No step of training waits for the device: nothing reads a tensor's value on the host, or a size
that depends on one, but for the named places."""

import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.models.factory import build_ranker
from recsys.training.engine import Engine
from recsys.training.overlap import train_batches
from tests.support.engines import SCHEMA, SEED, model_settings, settings_for, share
from tests.support.launches import run_cases

STEPS = 7
WARM_UP = 2
READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.cpu,
    Tensor.numpy,
    Tensor.nonzero,
    torch.nonzero,
    Tensor.unique,
    torch.unique,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
}
GUARD = "recsys/training/non_finite.py"
READS_INSIDE = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
)
# Where a value is read that is on the host already, or that TorchRec has to know there
ALLOWED = {
    "recsys/training/late.py:read",  # a copy, two steps old
    # FBGEMM keeps its count of steps and the widths of features on the host
    "fbgemm_gpu/split_table_batched_embeddings_ops_training.py:forward",
    "fbgemm_gpu/split_table_batched_embeddings_ops_training.py:_generate_vbe_metadata",
    # How many ids arrive, to make room for them; of the next batch, while this one is computed
    "torchrec/distributed/dist_data.py:_safe_tolist_2d",
    "torchrec/sparse/jagged_tensor.py:_safe_tolist",
}
SHORT = {"forward": "fp16", "backward": "bf16", "gradients": "bf16"}
CASES = {
    "default": {},
    "16 bits": {"communication": SHORT},
    "clipped": {"dense_clip_norm": 1.0},
    "skipping": {"skip_non_finite_batches": True},
}


def _place() -> str:
    """The innermost file, below site-packages or the project, that is neither torch's nor this."""
    for frame in reversed(traceback.extract_stack()):
        name = frame.filename.split("site-packages/")[-1]
        if not name.startswith("torch/") and Path(frame.filename) != Path(__file__):
            parts = Path(name).parts
            return "/".join(parts[-3:]) + f":{frame.name}"
    return "?"


class PythonReads(TorchFunctionMode):
    """Notes where Python code reads."""

    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in READS:
            self.found.add(_place())
        return func(*args, **(kwargs or {}))


class KernelReads(TorchDispatchMode):
    """Notes where kernels read, in the backward pass too."""

    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in READS_INSIDE:
            self.found.add(_place())
        return func(*args, **(kwargs or {}))


def reads(changes: dict[str, Any]) -> list[str]:
    """Where the steps after the first WARM_UP read a value."""
    world_size = distributed.get_world_size()
    settings = settings_for("row_wise", world_size, **changes)
    engine = Engine(build_ranker(SCHEMA, model_settings(), None, SEED, "meta"), settings, SEED)
    batches = [share(32, step, engine.rank, world_size) for step in range(STEPS)]
    found: set[str] = set()
    with closing(train_batches(engine, batches, engine.serving_loss)) as steps:
        for _ in range(WARM_UP):
            next(steps)
        with PythonReads(found), KernelReads(found):
            for _ in range(STEPS - WARM_UP):
                next(steps)
    return sorted(found)


@pytest.mark.parametrize("world_size", [1, 2])
def test_no_step_reads_a_value_but_at_the_named_places(world_size: int) -> None:
    cases = {name: (world_size, (changes,)) for name, changes in CASES.items()}
    for name, by_rank in run_cases(reads, cases).items():
        for found in by_rank:
            others = set(found) - ALLOWED
            if name == "skipping":  # a batch that may be left out has to be known before its step
                assert {place.split(":")[0] for place in others} == {GUARD}, others
            else:
                assert others == set(), (name, others)
                assert "recsys/training/late.py:read" in found
