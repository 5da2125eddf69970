"""TorchRec as its own documentation uses it, around the same model."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from bench.training.cases import ADAGRAD_RATE, ADAM_RATE, SEED, Case, Model
from bench.training.contenders import dense_logit, dense_ranker
from bench.training.loop import Contest, measure, peak_gib
from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import Schema
from recsys.models.initial_tables import initial_rows
from recsys.models.names import TABLE_PREFIX
from recsys.models.ranker import Ranker
from recsys.training.launch import run_on_ranks
from recsys.upstream import apply_optimizer_in_backward


class TorchRecRanker(nn.Module):
    """The ranker of ``model``, from the same weights, and its loss."""

    def __init__(self, schema: Schema, model: Model) -> None:
        super().__init__()
        self.ranker = dense_ranker(schema, model)
        self.embeddings = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=TABLE_PREFIX + feature.name,
                    num_embeddings=model.table_rows,
                    embedding_dim=model.dimension,
                    feature_names=[feature.name],
                    init_fn=partial(_first_rows, TABLE_PREFIX + feature.name, self.ranker),
                )
                for feature in schema.categorical
            ],
            device=torch.device("meta"),
        )
        self.shape = len(schema.categorical), model.dimension

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(mean loss, the same without a gradient)."""
        vectors = self.embeddings(batch.sparse).values().view(-1, *self.shape)  # [B, F, N]
        logit = dense_logit(self.ranker, batch.dense, vectors)
        loss = binary_cross_entropy_with_logits(logit, batch.label)
        return loss, loss.detach()


def _first_rows(table: str, ranker: Ranker, weight: Tensor) -> None:
    """Fill the ``weight`` of a table, which is whole on one rank, as the engine does."""
    rows, dimension = weight.shape
    with torch.no_grad():
        weight.copy_(initial_rows(SEED, table, rows, dimension, 0, rows, ranker.own_weights))


class TorchRecTrainer:
    """The ranker of ``model``, sharded by TorchRec's own plan, in a process group of one rank."""

    def __init__(self, device: str, model: Model, schema: Schema) -> None:
        ranker = TorchRecRanker(schema, model)
        tables = ranker.embeddings.parameters()
        apply_optimizer_in_backward(RowWiseAdagrad, tables, {"lr": ADAGRAD_RATE})
        self._device = torch.device(device)
        self._model = DistributedModelParallel(ranker, device=self._device)
        dense = KeyedOptimizerWrapper(
            dict(in_backward_optimizer_filter(self._model.named_parameters())),
            lambda parameters: torch.optim.Adam(parameters, lr=ADAM_RATE),
        )
        self._optimizer = CombinedOptimizer([self._model.fused_optimizer, dense])

    def steps(self, batches: Iterator[Batch]) -> Iterator[Tensor]:
        """The loss of a step on each of ``batches``; on a GPU by TorchRec's pipeline."""
        if self._device.type == "cuda":
            pipeline = TrainPipelineSparseDist(self._model, self._optimizer, self._device)
            while True:
                try:
                    yield pipeline.progress(batches)
                except StopIteration:
                    return
        for batch in batches:
            self._optimizer.zero_grad()
            loss, detached = self._model(batch)
            loss.backward()
            self._optimizer.step()
            yield detached


def run_torchrec(case: Case) -> dict[str, float]:
    """Train on TorchRec's own loop, fed by the engine's reader."""
    return run_on_ranks(_torchrec_rank, (case,), 1, case.who().threads)[0]


def _torchrec_rank(case: Case) -> dict[str, float]:
    reader = WindowReader(Path(case.windows))
    trainer = TorchRecTrainer("cpu", case.model, reader.schema)
    contest = Contest(
        reader.windows,
        lambda window: reader.label_batches(window, case.model.batch_size, 0, 1),
        lambda batches: (loss.item() for loss in trainer.steps(batches)),
        case.model.batch_size,
    )
    return {**measure(contest, case.seconds, case.least_steps), "peak_gib": peak_gib()}
