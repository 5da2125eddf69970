"""Train on a sequence of batches, with loading, input distribution and computation overlapped or in
turn."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, cast

import torch
from torch import Tensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline.pipeline_context import TrainPipelineContext
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward
from torchrec.distributed.train_pipeline.tracing import GetAttrArgInfoStep
from torchrec.distributed.train_pipeline.train_pipelines import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.types import ArgInfo, CallArgs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.data.prefetch import prefetched
from recsys.models.peers import Peers
from recsys.training.engine import Engine, LossFunction, sharded_collections
from recsys.training.late import StepLoss

# The arguments with which every collection is called
SPARSE = CallArgs(args=[ArgInfo([GetAttrArgInfoStep("sparse")])], kwargs={})


def load_ahead(engine: Engine, batches: Iterable[Batch]) -> Generator[Batch]:
    """``batches``, read by a separate thread if the settings of ``engine`` overlap; in pinned
    memory for a GPU."""
    if engine.device.type == "cuda":
        batches = _pinned(batches)
    return prefetched(batches, engine.settings.prefetch_batches if engine.settings.overlap else 0)


def _pinned(batches: Iterable[Batch]) -> Generator[Batch]:
    try:
        for batch in batches:
            yield batch.pinned()
    finally:
        if isinstance(batches, Generator):
            batches.close()


def train_batches(
    engine: Engine, batches: Iterable[Batch], loss_function: LossFunction
) -> Generator[tuple[Batch, StepLoss]]:
    """Train on each of ``batches`` and yield it with the result of :meth:`Engine.train_step`;
    collective.

    With ``overlap`` in the settings, the ids of batch i+1 travel to the ranks that hold their rows
    while batch i is computed; losses and weights are bitwise the same. A single rank on a CPU has
    nothing to send and does not do this. A yielded batch has been trained on, and later ones have
    not, so a checkpoint between two batches is the same as in a plain loop. Close the generator if
    you leave it early.

    No step waits for the device: ``float`` reads the loss, and a step is checked a few steps later
    (:meth:`Engine.checking_late`).

    Raises:
        Exception: what reading a batch raised; with ``overlap``, up to two batches before its turn.
        NonFiniteError, CommunicationOverflowError: a batch before the last one may be the bad one.
    """
    with engine.checking_late():
        if not engine.settings.overlap or engine.is_alone:
            yield from _steps(engine, batches, loss_function)
        elif engine.peers is not None:
            yield from _steps_with_ids_ahead(engine, engine.peers, batches, loss_function)
        else:
            source = iter(batches)
            with closing(OverlappedSteps(engine, loss_function)) as pipeline:
                while True:
                    try:
                        done = pipeline.progress(source)
                    except StopIteration:
                        break
                    yield done


def _steps(
    engine: Engine, batches: Iterable[Batch], loss_function: LossFunction
) -> Generator[tuple[Batch, StepLoss]]:
    for batch in batches:
        loss = engine.begin_step(engine.on_device(batch), loss_function)
        updated = loss is not None and engine.finish_step(loss)
        yield batch, StepLoss(loss if updated else None)


def _steps_with_ids_ahead(
    engine: Engine, peers: Peers, batches: Iterable[Batch], loss_function: LossFunction
) -> Generator[tuple[Batch, StepLoss]]:
    """Under the tower transform, batch i+1's ids travel to the peers while batch i is computed.

    Inside the hosts they are distributed in the forward pass, where this costs little.
    """
    source = iter(batches)
    try:
        batch = _next_batch(engine, peers, source)
        while batch is not None:
            peers.send_ids()
            following = _next_batch(engine, peers, source)
            loss = engine.begin_step(batch, loss_function)
            peers.send_ids()
            updated = loss is not None and engine.finish_step(loss)
            yield batch, StepLoss(loss if updated else None)
            batch = following
    finally:
        peers.forget_ids()


def _next_batch(engine: Engine, peers: Peers, source: Iterator[Batch]) -> Batch | None:
    """The next batch on its device, with sending of its ids started; None if there is none."""
    batch = next(source, None)
    if batch is None:
        return None
    batch = engine.on_device(batch)
    peers.start_ids(batch.sparse)
    return batch


class OverlappedSteps(TrainPipelineSparseDist[Batch, tuple[Batch, Tensor | None]]):
    """TorchRec's pipeline with the engine's step: batch i+1 is distributed while batch i is
    computed.

    It replaces the collections' forward pass without tracing the model, and leaves their input
    distribution alone, so that the model can still predict between two steps. Collections must be
    called with the batch's own ids.
    """

    def __init__(self, engine: Engine, loss_function: LossFunction) -> None:
        self._engine = engine
        self._loss_function = loss_function
        self._updated = False
        super().__init__(
            engine.sharded,
            engine.dense_optimizer,
            engine.device,
            custom_model_fwd=self._begin,
        )

    def progress(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dataloader_iter: Iterator[Batch]
    ) -> tuple[Batch, StepLoss]:
        """Train on the next batch; returns the batch and its loss (NaN if it was skipped).

        Raises:
            StopIteration: there is no next batch.
        """
        self._model.train()
        self._updated = False
        batch, loss = super().progress(dataloader_iter)
        return batch, StepLoss(loss if self._updated else None)

    def close(self) -> None:
        """Restore the collections' own forward pass."""
        for module in self._pipelined_modules:
            del module.forward
        self._pipelined_modules = []
        self.reset()

    def _pipeline_model(
        self,
        batch: Batch | None,
        context: TrainPipelineContext,
        pipelined_forward: type[PipelinedForward] = PipelinedForward,
    ) -> None:
        del pipelined_forward
        for name, module in sharded_collections(self._engine.module).items():
            module.forward = DistributedForward(name, module, context)
            self._pipelined_modules.append(module)
        self.start_sparse_data_dist(batch, context)

    def _begin(self, batch: Batch | None) -> tuple[Tensor, tuple[Batch, Tensor | None]]:
        assert batch is not None
        for module in self._pipelined_modules:
            cast(DistributedForward, module.forward).sparse = batch.sparse
        loss = self._engine.begin_step(batch, self._loss_function)
        return loss, (batch, loss)  # pyright: ignore[reportReturnType]

    def _backward(self, losses: Tensor | None) -> None:
        if losses is not None:
            self._updated = self._engine.finish_step(losses)

    def _optimizer_step(self) -> None:
        """Does nothing: the engine's step already runs the optimisers."""


class DistributedForward(PipelinedForward):
    """A collection's forward pass on ids that are already distributed; the usual one if no gradient
    is needed."""

    def __init__(
        self, name: str, module: ShardedEmbeddingBagCollection, context: TrainPipelineContext
    ) -> None:
        super().__init__(name, SPARSE, module, context)
        self.sparse: KeyedJaggedTensor | None = None

    def __call__(self, sparse: KeyedJaggedTensor) -> Any:
        """The result of the collection's own forward pass.

        Raises:
            ValueError: in training, ``sparse`` are not the ids of the batch.
        """
        if not torch.is_grad_enabled():
            return type(self._module).forward(self._module, sparse)
        if sparse is not self.sparse:
            raise ValueError(
                f"{self.name}: the model changes the batch's ids, so it needs overlap: false"
            )
        return super().__call__(sparse)
