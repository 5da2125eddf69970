"""Train a model whose tables are sharded over the ranks of the current process group."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ModuleSharder, ShardingEnv
from torchrec.optim import RowWiseAdagrad

from recsys.data.loader import Batch
from recsys.models.initial_tables import initial_rows
from recsys.models.ranker import SERVING, TABLE_PREFIX
from recsys.sharding.plan import DEVICE, BagSharder, PlanRequest, bag_collections, local_shards, make_plan, plan_rows
from recsys.towers.partition_file import Partition
from recsys.training.checkpoints import load_checkpoint, save_checkpoint
from recsys.training.settings import TrainSettings

LossFunction = Callable[[dict[str, Tensor], Batch], Tensor]
TABLE_OPTIMIZERS = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}


class Engine:
    """A model on this rank, its tables sharded, its dense part replicated; collective in every method.

    Table optimisers run inside the backward pass (FBGEMM). Table weights start from
    :func:`initial_rows`, so they depend on neither the plan nor the number of ranks; build the
    model with ``table_device="meta"`` and the same ``seed``.

    Args:
        model: takes (dense [B, W], KeyedJaggedTensor), returns {"serving": [B], ...}.
        settings: ranks, optimisers, sharding.
        seed: of the initial tables.
        partition: towers whose tables stay together on one rank; None where the plan is free.

    Raises:
        InputError: no plan fits the settings.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, seed: int, partition: Partition | None = None
    ) -> None:
        self.settings = settings
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self._set_table_optimizer(model)
        sharder = BagSharder()
        request = PlanRequest(settings, self.world_size, _table_groups(partition))
        plan = make_plan(model, request, sharder)
        self._plan_rows = plan_rows(model, plan, settings)
        paths = list(bag_collections(model))
        configs = [config for m in bag_collections(model).values() for config in m.embedding_bag_configs()]
        tables = {config.name: (config.num_embeddings, config.embedding_dim) for config in configs}
        group = distributed.group.WORLD
        assert group is not None
        self._model = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(group),
            device=torch.device(DEVICE),
            plan=plan,
            sharders=[cast(ModuleSharder[nn.Module], sharder)],
            init_data_parallel=False,  # one all-reduce of ours: DDP refuses heads that a loss does not read
        )
        self._write_tables(tables, seed)
        self._dense = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if not any(name.startswith(f"{path}.") for path in paths)
        }
        self._dense_optimizer = _dense_optimizer(list(self._dense.values()), settings)

    @property
    def module(self) -> nn.Module:
        """The model itself, its tables sharded."""
        return self._model.module

    def predict(self, batch: Batch) -> Tensor:
        """Serving logits [B] float32 of this rank's share, without gradients."""
        return self.outputs(batch)[SERVING]

    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """Every output of the model for this rank's share, float32, without gradients."""
        self._model.eval()
        with torch.no_grad(), self._precision():
            outputs = self._model.module(batch.dense, batch.sparse)
        return {name: value.float() for name, value in outputs.items()}

    def train_step(self, batch: Batch, loss_function: LossFunction) -> float:
        """One optimiser step on a global batch.

        ``loss_function`` maps (outputs, batch) to a loss an example [B]. The step follows the mean
        over the global batch's real rows, so it does not depend on the number of ranks.

        Returns:
            This rank's part of that mean, times the number of ranks: its mean over ranks is the
            loss of the global batch.
        """
        self._model.train()
        self._dense_optimizer.zero_grad(set_to_none=True)
        with self._precision():
            outputs = self._model(batch.dense, batch.sparse)
        losses = loss_function({name: value.float() for name, value in outputs.items()}, batch)
        loss = (batch.weight * losses).sum() * (self.world_size / batch.global_rows)
        loss.backward()
        self._average_gradients()
        self._dense_optimizer.step()
        return loss.item()

    def serving_loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """Binary cross-entropy of the serving logit against the label, an example: [B]."""
        return binary_cross_entropy_with_logits(outputs[SERVING], batch.label, reduction="none")

    def save(self, directory: Path) -> None:
        """Write weights and optimiser state as a torch.distributed.checkpoint."""
        save_checkpoint(self._state(), directory)

    def load(self, directory: Path) -> None:
        """Read what :meth:`save` wrote, also with another plan or number of ranks."""
        state = self._state()
        load_checkpoint(state, directory)
        self._model.load_state_dict(state["model"])
        for name, values in state["dense"].items():
            self._dense_optimizer.state[self._dense[name]] = values

    def gather_state(self) -> dict[str, Tensor]:
        """The unsharded model's state_dict, float32, on rank 0; empty on the other ranks."""
        gathered: dict[str, Tensor] = {}
        for name, value in self._model.state_dict().items():
            if isinstance(value, ShardedTensor):
                whole = torch.empty(value.metadata().size) if self.rank == 0 else None
                value.gather(dst=0, out=whole)
                value = whole
            if self.rank == 0:
                assert value is not None
                gathered[name] = value.detach().float().clone()
        return gathered

    def plan_summary(self) -> list[dict[str, Any]]:
        """One row a table: table, kind, ranks, bytes."""
        return self._plan_rows

    def _average_gradients(self) -> None:
        """Mean of the dense gradients over ranks, in one collective."""
        gradients = [parameter.grad for parameter in self._dense.values() if parameter.grad is not None]
        if self.world_size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world_size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=self.settings.bf16)

    def _set_table_optimizer(self, model: nn.Module) -> None:
        optimizer = TABLE_OPTIMIZERS[self.settings.table_optimizer]
        for module in bag_collections(model).values():
            apply_optimizer_in_backward(optimizer, module.parameters(), {"lr": self.settings.table_learning_rate})

    @torch.no_grad()
    def _write_tables(self, tables: dict[str, tuple[int, int]], seed: int) -> None:
        for name, value in self._model.state_dict().items():
            table = name.split(".")[-2] if "." in name else ""
            if table not in tables:
                continue
            for weight, row, column in local_shards(value):
                count, dimension = tables[table]
                rows = initial_rows(seed, table, count, dimension, row, row + weight.shape[0])
                weight.copy_(rows[:, column : column + weight.shape[1]])

    def _state(self) -> dict[str, Any]:
        """Live references to everything that a checkpoint holds."""
        return {
            "model": self._model.state_dict(),
            "tables": self._model.fused_optimizer.state_dict()["state"],
            "dense": {name: self._dense_state(parameter) for name, parameter in self._dense.items()},
        }

    def _dense_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Optimiser state of a dense parameter; zeros before the first step."""
        if self.settings.dense_optimizer == "sgd":
            return {}
        state = self._dense_optimizer.state.get(parameter)
        if state:
            return dict(state)
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros(()), **zeros}


def _dense_optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.dense_optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.dense_learning_rate)
    return torch.optim.Adam(parameters, lr=settings.dense_learning_rate, fused=True)


def _table_groups(partition: Partition | None) -> list[list[str]] | None:
    if partition is None:
        return None
    return [[TABLE_PREFIX + name for name in tower] for tower in partition.towers]
