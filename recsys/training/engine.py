"""Train a model whose tables are sharded over the ranks of the current process group."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import LazyAwaitable, ModuleSharder, ShardingEnv, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys.data.loader import Batch
from recsys.models.initial_tables import initial_rows, row_blocks
from recsys.models.names import TABLE_PREFIX
from recsys.models.partition_file import Partition
from recsys.models.peers import Peers
from recsys.models.ranker import SERVING
from recsys.models.sequences import RankerBagConfig
from recsys.models.slices import Piece
from recsys.sharding.communication import average_gradients, shard_width, wire_codecs
from recsys.sharding.hosts import hosts_of
from recsys.sharding.plan import (
    BagSharder,
    PlanRequest,
    bag_collections,
    gather_shards,
    local_shards,
    make_plan,
    plan_rows,
)
from recsys.sharding.pooling import sum_split_rows
from recsys.sharding.settings import check_table_names
from recsys.training.checkpoints import load_checkpoint, save_checkpoint
from recsys.training.memory import LARGE_BLOCK, map_large_blocks, mapped_blocks
from recsys.training.non_finite import NonFiniteGuard
from recsys.training.optimizers import (
    dense_optimizer,
    first_state,
    first_sum,
    is_constant,
    rate_factor,
    replicated_table_optimizer,
    set_rates,
    table_optimizer,
    table_rates,
    tensors,
)
from recsys.training.precision import computes_in_bf16
from recsys.training.rank_process import join_if_alone
from recsys.training.settings import TrainSettings
from recsys.training.side_model import SideModel
from recsys.training.table_memory import TableFiles, set_table_precision
from recsys.training.transformed import Transform
from recsys.units import FLOAT_BYTES
from recsys.upstream import (
    LookUpAlone,
    ShardedTensor,
    apply_optimizer_in_backward,
    unwrap_replicated_tables,
)

LossFunction = Callable[[dict[str, Tensor], Batch], Tensor]
Part = Literal["all", "dense", "tables"]  # the part of a model that trains


class Engine:
    """A model on this rank, with sharded tables and a replicated dense part; every method is
    collective.

    A single rank needs no :func:`recsys.training.launch.launch`: without a process group, and with
    ``world_size`` 1, the engine starts one, which lasts as long as the process.

    Table optimisers run inside the backward pass (FBGEMM). Table weights start from
    :func:`initial_rows`, so they depend on neither the plan nor the number of ranks; build the
    model with ``table_device="meta"`` and the same ``seed``.

    Args:
        model: takes (dense [B, W], KeyedJaggedTensor), returns {"serving": [B], ...}.
        settings: ranks, optimisers, sharding.
        seed: seed of the initial tables.
        partition: towers whose tables stay together on one rank or, with ``transform``, on the
            tower's hosts; None: the plan is free.
        side: a side model that is trained alongside.
        transform: spreads the towers over hosts before anything is sharded; None: every rank has
            the whole dense part. :func:`recsys.towers.engine.tower_engine` passes the one that the
            settings want.

    Raises:
        InputError: no plan fits the settings, the hosts do not suit the towers, or several ranks
            are wanted without a process group.

    Example::

        >>> import numpy, polars
        >>> from recsys.data.loader import batch_of
        >>> from recsys.data.schema import CategoricalFeature, Schema
        >>> from recsys.models.factory import build_ranker
        >>> from recsys.models.settings import ModelSettings
        >>> schema = Schema("toy", ["price"], [CategoricalFeature("ad", 100)], ["all"], [], 0.5, {})
        >>> ranker = build_ranker(schema, ModelSettings(), seed=1, table_device="meta")
        >>> engine = Engine(ranker, TrainSettings(world_size=1), seed=1)
        >>> rows = polars.DataFrame(
        ...     {"example_id": [0, 1], "event_time": [0, 1], "domain": [0, 0], "group": [0, 0]}
        ...     | {"price": [9.5, None], "ad": [7, 8], "label": [1.0, 0.0]}
        ... )
        >>> batch = batch_of(rows, schema, weight=numpy.ones(2, numpy.float32), global_rows=2)
        >>> [engine.train_step(batch, engine.serving_loss) for _ in range(9)][-1] < 0.6
        True
        >>> engine.predict(batch).shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        seed: int,
        partition: Partition | None = None,
        side: SideModel | None = None,
        transform: Transform | None = None,
    ) -> None:
        join_if_alone(settings)
        self.settings = settings
        self._side = side or SideModel()
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.device = torch.device(settings.device)
        self._copies: torch.cuda.Stream | None = None  # for copying batches to the device
        if settings.device == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
            self._copies = torch.cuda.Stream()
        self._bf16 = computes_in_bf16(settings)
        self._guard = NonFiniteGuard(settings.skip_non_finite_batches)
        self._trains_tables = True
        self._files = (
            TableFiles(settings.table_file_dir, settings.where("table_file_dir"))
            if settings.table_memory == "file"
            else None
        )
        names = [name for one in bag_collections(model).values() for name in one.embedding_bags]
        whole = [Piece.parse(name).feature for name in names]
        check_table_names(settings, "table_rate_factors", list(dict.fromkeys(whole)))
        self._towers = None
        if transform is not None:  # it keeps only this host's tables
            assert partition is not None, "a transform needs the towers of a partition"
            self._towers = transform(model, partition, settings, self._guard.overflows)
        set_table_precision(model, settings)
        self._set_table_optimizer(model)
        paths = list(bag_collections(model))
        configs = [
            config for m in bag_collections(model).values() for config in m.embedding_bag_configs()
        ]
        tables = {config.name: config for config in configs}
        files = self._files.hold_new_tables() if self._files else nullcontext()
        with (
            mapped_blocks(),
            hosts_of(settings.ranks_per_host, settings.where("ranks_per_host")) as ranks_per_host,
            files,
        ):
            self._model = self._shard(model, ranks_per_host, partition)
            self._write_tables(tables, seed)
            self._start_accumulators()
        self._dense = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if not any(name.startswith(f"{path}.") for path in paths)
        }
        self._dense_optimizer = dense_optimizer(list(self._dense.values()), settings)
        self._replicated = _replicated_tables(self._model)
        if sum(table.numel() for table in self._replicated.values()) * FLOAT_BYTES > LARGE_BLOCK:
            map_large_blocks()
        self._replicated_optimizer = None
        if self._replicated:
            self._replicated_optimizer = replicated_table_optimizer(
                {name.split(".")[-2]: table for name, table in self._replicated.items()}, settings
            )
        self._table_optimizers = [
            (one, table_rates(one, settings))
            for one in (self._replicated_optimizer, self._model.fused_optimizer)
            if one is not None
        ]
        self.checks_late = self.device.type == "cuda"
        self._rates_are_constant = is_constant(settings.schedule)
        self._counts = torch.zeros(2, dtype=torch.int64)  # optimiser steps and skipped batches
        # The same memory; reading through torch would wait for a device
        self._counted = self._counts.numpy()

    @property
    def steps(self) -> int:
        """Optimiser steps so far, including those of a loaded checkpoint."""
        return int(self._counted[0])

    @property
    def skipped_batches(self) -> int:
        """Batches skipped because their loss was not finite."""
        return int(self._counted[1])

    @property
    def is_alone(self) -> bool:
        """Whether steps have nothing to send: a single rank on the CPU."""
        return self.world_size == 1 and self.device.type == "cpu"

    @property
    def peers(self) -> Peers | None:
        """The exchange between hosts under the tower transform; None for a flat engine."""
        return None if self._towers is None else self._towers.peers

    @property
    def sharded(self) -> DistributedModelParallel:
        """TorchRec's wrapper of the model."""
        return self._model

    @property
    def dense_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the dense part."""
        return self._dense_optimizer

    @property
    def module(self) -> nn.Module:
        """The model itself, with sharded tables."""
        return self._model.module

    def predict(self, batch: Batch) -> Tensor:
        """Serving logits [B] float32 of this rank's share, without gradients."""
        return self.outputs(batch)[SERVING]

    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """Every output of the model for this rank's share, float32, without gradients."""
        self._settle()
        self._set_mode(training=False)
        batch = self.on_device(batch)
        with torch.no_grad(), self._precision():
            outputs = self._model.module(batch.dense, batch.sparse)
        return {name: value.float() for name, value in outputs.items()}

    @contextmanager
    def checking_late(self) -> Iterator[None]:
        """Inside this context no step waits for the device to check whether its loss and gradients
        are finite. The check is read a few steps later, and completed by anything that reads
        weights or predicts. A bad step is still reported, but has been taken. With
        ``skip_non_finite_batches``, and without :attr:`checks_late`, steps are checked at once: on
        a CPU there is nothing to wait for, and late checks make a small step 8 % slower.

        Raises:
            NonFiniteError, CommunicationOverflowError: a step was bad; raised in a later step or at
                the end.
        """
        if not self.checks_late:
            yield
            return
        self._guard.begin_late()
        self._side.is_late = not self._guard.skip
        try:
            yield
        finally:
            self._guard.end_late()
            self._side.is_late = False
        self._settle()

    def on_device(self, batch: Batch) -> Batch:
        """``batch`` on this rank's device; the copy to a GPU overlaps with computation."""
        if self._copies is None:
            return batch
        with torch.cuda.stream(self._copies):
            moved = batch.to(self.device)
        current = torch.cuda.current_stream()
        current.wait_stream(self._copies)
        moved.record_stream(current)
        return moved

    def train_step(self, batch: Batch, loss_function: LossFunction) -> float:
        """One optimiser step on a global batch.

        ``loss_function`` maps (outputs, batch) to a loss per example [B]. The step uses the mean
        over the global batch's real rows, so it does not depend on the number of ranks.

        Returns:
            This rank's part of that mean, times the number of ranks, so that its mean over ranks is
            the global batch's loss. NaN if the batch was skipped.

        Raises:
            NonFiniteLossError: this rank's part is NaN or infinite; nothing was updated.
            NonFiniteGradientError: a gradient is NaN or infinite.
        """
        loss = self.begin_step(self.on_device(batch), loss_function)
        return loss.item() if loss is not None and self.finish_step(loss) else math.nan

    @contextmanager
    def learning(self, part: Part) -> Iterator[None]:
        """Steps inside this context train only ``part`` and leave the rest unchanged.

        With ``dense`` the tables' kernels see no gradient; with ``tables`` the dense optimiser gets
        none. A side model trains in both cases.
        """
        trains_dense = part != "tables"
        self._trains_tables = part != "dense"
        try:
            for parameter in self._dense.values():
                parameter.requires_grad_(trains_dense)
            yield
        finally:
            self._trains_tables = True
            for parameter in self._dense.values():
                parameter.requires_grad_(True)

    def begin_step(self, batch: Batch, loss_function: LossFunction) -> Tensor | None:
        """The first half of :meth:`train_step`; returns the loss to differentiate, or None if all
        ranks skip the batch."""
        self._set_mode(training=True)
        self._guard.begin(self.steps + 1)
        self._dense_optimizer.zero_grad(set_to_none=True)
        if self._replicated_optimizer is not None:
            self._replicated_optimizer.zero_grad(set_to_none=True)
        self._set_rates()  # the kernels read theirs in the forward pass
        self._side.begin(batch, self.steps + 1)
        with self._precision():
            outputs = self._model(batch.dense, batch.sparse)
        losses = loss_function({name: value.float() for name, value in outputs.items()}, batch)
        loss = (batch.weight * losses).sum() * (self.world_size / batch.global_rows)
        if self._guard.skips_loss(loss, batch, outputs):
            self._end_step(updated=False)
            return None
        return loss

    def finish_step(self, loss: Tensor) -> bool:
        """The second half: gradients, averaged over ranks, and the optimisers; returns False if all
        ranks skip the batch."""
        loss.backward()
        self._average_gradients()
        if self._guard.skips_gradients(
            self._dense | self._replicated, differ=self._towers is not None
        ):
            return self._end_step(updated=False)
        if self.settings.dense_clip_norm is not None:
            self._clip_gradients(self.settings.dense_clip_norm)
        self._dense_optimizer.step()
        if self._replicated_optimizer is not None:
            self._replicated_optimizer.step()
        return self._end_step(updated=True)

    def serving_loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """Binary cross-entropy of the serving logit against the label, per example: [B]."""
        return binary_cross_entropy_with_logits(outputs[SERVING], batch.label, reduction="none")

    def save(self, directory: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write weights, optimiser state and ``facts`` (plain values) as a checkpoint folder."""
        with self.tables_in_order():
            save_checkpoint(self.state(), directory, facts)

    def load(self, directory: Path) -> dict[str, Any]:
        """Load a checkpoint of :meth:`save`, also one with another plan or number of ranks; returns
        its facts.

        Raises:
            DamagedCheckpointError: it is incomplete, or belongs to another model.
        """
        state = self.state()
        with self.tables_in_order():
            facts = load_checkpoint(state, directory)
        self.adopt(state)
        return facts

    def tables_in_order(self) -> AbstractContextManager[None]:
        """A context for reading or writing whole tables; tables in files are read ahead."""
        return self._files.in_order() if self._files else nullcontext()

    def adopt(self, state: dict[str, Any]) -> None:
        """Continue from what was loaded into ``state``, the result of :meth:`state`."""
        self._model.load_state_dict(state["model"])
        if self.steps == 0:
            self._dense_optimizer = dense_optimizer(list(self._dense.values()), self.settings)
            return
        for name, values in state.get("dense", {}).items():
            self._dense_optimizer.state[self._dense[name]] = values

    def state(self) -> dict[str, Any]:
        """Live references to everything in a checkpoint."""
        self._settle()
        tables = self._model.fused_optimizer.state_dict()["state"] | self._replicated_state()
        dense = {name: self._dense_state(parameter) for name, parameter in self._dense.items()}
        optimizers = {"tables": tables, "dense": dense}
        # With only empty dicts inside, DCP would take the checkpoint for one from an old PyTorch.
        filled = {
            key: {name: s for name, s in states.items() if s} for key, states in optimizers.items()
        }
        state = {"model": self._model.state_dict(), "counts": self._counts}
        return (
            state | {key: states for key, states in filled.items() if states} | self._side.state()
        )

    def gather_state(self) -> dict[str, Tensor]:
        """The unsharded model's state_dict, float32, on rank 0; empty on the other ranks."""
        self._settle()
        if self._towers is not None:
            return self._towers.gather_whole(self._model.state_dict())
        gathered: dict[str, Tensor] = {}
        for name, value in self._model.state_dict().items():
            if isinstance(value, ShardedTensor):
                whole = gather_shards(value)
                if whole is not None:
                    gathered[name] = self._files.copy(whole) if self._files else whole.float()
            elif self.rank == 0:
                gathered[name] = value.detach().cpu().float().clone()
        return gathered

    def plan_summary(self) -> list[dict[str, Any]]:
        """One row per table: table, kind, ranks, bytes."""
        return self._plan_rows

    def _stop_gradients(
        self,
        module: nn.Module,
        inputs: tuple[Any, ...],
        output: KeyedTensor | LazyAwaitable[KeyedTensor],
    ) -> KeyedTensor | None:
        """Forward hook of a sharded collection: if its tables should not train, it keeps gradients
        from its kernels, which would use them at once."""
        if self._trains_tables or not torch.is_grad_enabled():
            return None
        if isinstance(output, KeyedTensor):
            return _detached(output)
        output.callbacks.append(_detached)
        return None

    def _set_mode(self, training: bool) -> None:
        # Visit all modules only if it changes: that costs as much as a small batch
        if self.module.training != training:
            self._model.train(training)

    def _settle(self) -> None:
        """Raise the error of a bad step so far, if there is one."""
        self._guard.settle()
        self._side.settle()

    def _end_step(self, updated: bool) -> bool:
        self._counted[0 if updated else 1] += 1
        self._side.end(updated)
        return updated

    def _average_gradients(self) -> None:
        """Average the gradients of all replicated parameters over ranks, in one collective."""
        replicated = [*self._dense.values(), *self._replicated.values()]
        if self._towers is not None:
            replicated = self._towers.average_own(replicated)
        gradients = [parameter.grad for parameter in replicated if parameter.grad is not None]
        average_gradients(
            gradients,
            self.settings.communication.gradients,
            overflows=self._guard.overflows,
        )

    def _clip_gradients(self, limit: float) -> None:
        dense = list(self._dense.values())
        if self._towers is None:
            clip_grad_norm_(dense, limit)
        else:
            self._towers.clip_gradients(dense, limit)

    def _set_rates(self) -> None:
        """Set the learning rates of the next step."""
        if self._rates_are_constant:
            return
        factor = rate_factor(self.steps, self.settings.schedule)
        set_rates(self._dense_optimizer, [factor * self.settings.dense_learning_rate])
        for optimizer, rates in self._table_optimizers:
            set_rates(optimizer, [factor * rate for rate in rates])
        self._model.fused_optimizer.zero_grad()  # passes the rate to the kernels

    def _shard(
        self, model: nn.Module, ranks_per_host: int, partition: Partition | None
    ) -> DistributedModelParallel:
        communication = self.settings.communication
        request = PlanRequest(
            self.settings, self.world_size, ranks_per_host, _table_groups(partition)
        )
        if self._towers is None:
            plan = make_plan(
                model, request, BagSharder(qcomm_codecs_registry=wire_codecs(communication))
            )
            group = distributed.group.WORLD
            sharder = BagSharder(
                qcomm_codecs_registry=wire_codecs(
                    communication, shard_width(plan), self._guard.overflows
                )
            )
            self._plan_rows = plan_rows(model, plan, self.settings)
        else:
            sharder = BagSharder()
            plan, group = self._towers.make_plan(model, sharder), self._towers.inside
            self._plan_rows = self._towers.gather_rows(plan_rows(model, plan, self.settings))
        means = {
            path: sum_split_rows(module, plan, path)
            for path, module in bag_collections(model).items()
        }
        assert group is not None
        sharded = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(group),
            device=self.device,
            plan=plan,
            sharders=[cast(ModuleSharder[nn.Module], sharder)],
            # Our own all-reduce: DDP refuses heads that a loss does not use
            init_data_parallel=False,
        )
        if self.device.type == "cuda":
            # The dense part; TorchRec does this only in its own data-parallel wrapper
            sharded.module.to(self.device)
        sends_whole = wire_codecs(communication) is None
        for module in sharded_collections(sharded).values():
            unwrap_replicated_tables(module)
            if self.is_alone and sends_whole and LookUpAlone.fits(module):
                vars(module)["forward"] = LookUpAlone(module)
        for path, mean in means.items():
            if mean is not None:
                sharded.module.get_submodule(path).register_forward_hook(mean)
        for module in sharded_collections(sharded).values():
            module.register_forward_hook(self._guard.watch)
            module.register_forward_hook(self._stop_gradients)
        return sharded

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _set_table_optimizer(self, model: nn.Module) -> None:
        optimizer = table_optimizer(self.settings)
        for module in bag_collections(model).values():
            for table, bag in module.embedding_bags.items():
                # Tables of one rate share a kernel
                apply_optimizer_in_backward(
                    optimizer, bag.parameters(), {"lr": self.settings.rate_of(table)}
                )

    @torch.no_grad()
    def _write_tables(self, tables: dict[str, EmbeddingBagConfig], seed: int) -> None:
        for name, value in self._model.state_dict().items():
            table = name.split(".")[-2] if "." in name else ""
            if table not in tables:
                continue
            for weight, row, column in local_shards(value):
                config = tables[table]
                count, dimension = config.num_embeddings, config.embedding_dim
                zeros = config.zero_columns if isinstance(config, RankerBagConfig) else 0
                for start, stop in row_blocks(row, row + weight.shape[0]):
                    columns = slice(column, column + weight.shape[1])
                    # Not kept in a variable, so that one block is in memory at a time
                    weight[start - row : stop - row].copy_(
                        initial_rows(seed, table, count, dimension, start, stop, zeros)[:, columns]
                    )
                    if self._files:
                        # Clean pages can be reclaimed; many dirty ones would exhaust memory
                        self._files.flush()

    @torch.no_grad()
    def _start_accumulators(self) -> None:
        """Set AdaGrad's sums in the tables' kernels, which FBGEMM starts at 0."""
        start = first_sum(self.settings)
        if start == 0.0:
            return
        for state in self._model.fused_optimizer.state_dict()["state"].values():
            for value in state.values():
                shards = value.local_shards() if isinstance(value, ShardedTensor) else None
                for tensor in [value] if shards is None else [shard.tensor for shard in shards]:
                    tensor.fill_(start)
                    if self._files:
                        self._files.flush()

    def _dense_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Optimiser state of a dense parameter; before the first step, one with the same shapes."""
        state = self._dense_optimizer.state.get(parameter)
        return tensors(state) if state else first_state(parameter, self.settings)

    def _replicated_state(self) -> dict[str, dict[str, Tensor]]:
        """Optimiser state of the replicated tables, with the names and shapes of sharded ones."""
        if self._replicated_optimizer is None or self.settings.table_optimizer == "sgd":
            return {}
        rowwise, state = self.settings.table_optimizer == "rowwise_adagrad", {}
        for name, table in self._replicated.items():
            total = self._replicated_optimizer.state[table]["sum"]
            state[name] = {f"{name.split('.')[-2]}.momentum1": total.view(-1) if rowwise else total}
        return state


def sharded_collections(model: nn.Module) -> dict[str, ShardedEmbeddingBagCollection]:
    """The sharded collections of ``model``, by module path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, ShardedEmbeddingBagCollection)
    }


def _detached(embeddings: KeyedTensor) -> KeyedTensor:
    return KeyedTensor(
        keys=embeddings.keys(),
        length_per_key=embeddings.length_per_key(),
        values=embeddings.values().detach(),
        key_dim=1,
    )


def _replicated_tables(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Weights, by name, of the tables that every rank has in full and updates outside the
    kernels."""
    replicated = {
        id(module.embedding_bags[table].weight)
        for module in sharded_collections(model).values()
        for table, sharding in module.module_sharding_plan.items()
        if sharding.sharding_type == ShardingType.DATA_PARALLEL.value
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in replicated
    }


def _table_groups(partition: Partition | None) -> list[list[str]] | None:
    if partition is None:
        return None
    return [[TABLE_PREFIX + name for name in tower] for tower in partition.towers]
