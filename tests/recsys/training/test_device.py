"""What a CPU can tell of the GPU path: backends, kernels, optimisers and refusals."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from recsys.config import InputError, load_settings
from recsys.sharding.plan import BagSharder
from recsys.training.optimizers import replicated_table_optimizer, table_optimizer
from recsys.training.rank_process import BACKENDS
from recsys.training.settings import TrainSettings


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
        replicated_table_optimizer([nn.Parameter(torch.zeros(2, 4))], settings)


def test_device_is_cpu_or_cuda(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("device: gpu")
    with pytest.raises(InputError, match=r"train\.yaml: key 'device': .*'cpu' or 'cuda'"):
        load_settings(path, TrainSettings)
