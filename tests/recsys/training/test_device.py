"""What a CPU can tell of the GPU path: backends, kernels, optimisers and refusals."""

import os
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from recsys.config import InputError, load_settings
from recsys.sharding.plan import BagSharder
from recsys.training.differential import _overlay
from recsys.training.launch import RANK_ENVIRONMENT, run_on_ranks
from recsys.training.optimizers import replicated_table_optimizer, table_optimizer
from recsys.training.rank_process import BACKENDS
from recsys.training.settings import TrainSettings
from recsys.upstream import TorchDispatchMode


def test_tensors_of_each_device_have_a_backend() -> None:
    parsed = {
        device: torch.distributed.BackendConfig(cast(Any, name))
        for device, name in BACKENDS.items()
    }
    assert {
        device: config.get_device_backend_map()["cpu"] for device, config in parsed.items()
    } == {
        "cpu": "gloo",
        "cuda": "gloo",
    }
    assert parsed["cuda"].get_device_backend_map()["cuda"] == "nccl"


def test_a_gpu_offers_kernels_for_rows_in_the_hosts_memory() -> None:
    assert BagSharder().compute_kernels("table_wise", "cpu") == ["fused"]
    assert BagSharder().compute_kernels("table_wise", "cuda") == [
        "fused",
        "fused_uvm",
        "fused_uvm_caching",
    ]


def test_adam_for_tables_needs_a_gpu_and_sharded_tables() -> None:
    settings = TrainSettings(device="cuda", table_optimizer="adam")
    assert table_optimizer(settings) is torch.optim.Adam
    with pytest.raises(
        InputError, match=r"^TrainSettings: key 'table_optimizer': adam has no kernel on the CPU"
    ):
        table_optimizer(TrainSettings().model_copy(update={"table_optimizer": "adam"}))
    with pytest.raises(
        InputError, match=r"^TrainSettings: key 'table_optimizer': adam has no data_parallel form"
    ):
        replicated_table_optimizer({"table": nn.Parameter(torch.zeros(2, 4))}, settings)


def test_device_is_cpu_or_cuda(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("device: gpu")
    with pytest.raises(InputError, match=r"train\.yaml: key 'device': .*'cpu' or 'cuda'"):
        load_settings(path, TrainSettings)


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of two devices, as a GPU does, but for copies."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The operation."""
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        devices = {one.device.type for one in tensors if one.dim()}
        assert len(devices) < 2 or "copy" in str(func), f"{func}: {devices}"
        return func(*args, **(kwargs or {}))


def test_rows_of_a_checkpoint_go_to_the_device_of_the_shard() -> None:
    rows = torch.arange(3)
    with OneDevice():
        _overlay(torch.empty(8, 4, device="meta"), rows, torch.ones(3, 4), 0)
        _overlay(torch.empty(8, device="meta"), rows, torch.ones(3), 0)
    shard = torch.zeros(8, 4)
    _overlay(shard, rows - 1, torch.ones(3, 2), 1)
    assert shard.sum(dim=1).tolist() == [2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_no_gpu_is_asked_for_before_a_rank_is_forked() -> None:
    assert RANK_ENVIRONMENT["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert run_on_ranks(environment, (), 2, 1) == ["1", "1"]


def environment() -> str | None:
    """On every rank."""
    return os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
