"""The contenders: this engine, and the same model in plain PyTorch."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from bench.training.cases import ADAGRAD_RATE, ADAM_RATE, SEED, Case, Model
from bench.training.loop import Contest, measure, peak_gib
from recsys.data.loader import WindowReader
from recsys.data.schema import Schema, Window
from recsys.models.factory import build_ranker
from recsys.models.initial_tables import initial_rows
from recsys.models.names import TABLE_PREFIX
from recsys.models.ranker import Ranker
from recsys.training import ranks
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.overlap import load_ahead, train_batches
from recsys.training.settings import TrainSettings
from recsys.units import BYTES_PER_GIB

EPSILON = 1e-8  # as FBGEMM adds to the root of AdaGrad's sum
WIRE16 = {"forward": "fp16", "backward": "bf16", "gradients": "bf16"}


def run_engine(case: Case) -> dict[str, float]:
    """Train on this engine, on as many ranks as the contender has."""
    who = case.who()
    results = run_on_ranks(engine_rank, (case,), who.ranks, who.threads)
    return {**results[0], "peak_gib": sum(result["peak_gib"] for result in results)}


def engine_rank(case: Case) -> dict[str, float]:
    """One rank of :func:`run_engine`."""
    who, reader = case.who(), WindowReader(Path(case.windows))
    settings = TrainSettings.model_validate(
        {
            "world_size": who.ranks,
            "threads_per_rank": who.threads,
            "global_batch_size": case.model.batch_size,
            "table_optimizer": who.optimizer,
            "table_learning_rate": ADAGRAD_RATE,
            "dense_learning_rate": ADAM_RATE,
            "sharding": case.sharding,
            "memory_gb": psutil.virtual_memory().total / who.ranks / BYTES_PER_GIB,
            "bf16": who.bf16,
            "communication": WIRE16 if who.wire16 else {},
        }
    )
    engine = Engine(
        build_ranker(reader.schema, case.model.settings(), None, SEED, "meta"), settings, SEED
    )
    contest = Contest(
        reader.windows,
        lambda window: load_ahead(
            engine,
            reader.label_batches(window, case.model.batch_size, ranks.rank(), ranks.world_size()),
        ),
        lambda batches: (
            float(loss) for _, loss in train_batches(engine, batches, engine.serving_loss)
        ),
        case.model.batch_size,
    )
    return {**measure(contest, case.seconds, case.least_steps), "peak_gib": peak_gib()}


class PlainRanker(nn.Module):
    """The same ranker, from the same weights, with one nn.EmbeddingBag a feature."""

    def __init__(self, schema: Schema, model: Model, sparse: bool = False) -> None:
        super().__init__()
        self.ranker = dense_ranker(schema, model)
        shape = model.table_rows, model.dimension
        tables = [
            initial_rows(SEED, TABLE_PREFIX + f.name, *shape, 0, shape[0], self.ranker.own_weights)
            for f in schema.categorical
        ]
        self.tables = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(t, freeze=False, mode="sum", sparse=sparse)
            for t in tables
        )

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """[B, W] and ids [B, F] -> logit [B]."""
        bags = [table(ids[:, f : f + 1]) for f, table in enumerate(self.tables)]
        return dense_logit(self.ranker, dense, torch.stack(bags, dim=1))


def dense_ranker(schema: Schema, model: Model) -> Ranker:
    """The ranker without its tables."""
    ranker = build_ranker(schema, model.settings(), None, SEED, "meta")
    del ranker.embeddings
    return ranker


def dense_logit(ranker: Ranker, dense: Tensor, embeddings: Tensor) -> Tensor:
    """All of a ranker but its tables: [B, W], [B, F, N] -> [B]."""
    return ranker.head(ranker.represent_embedded(dense, embeddings))


def run_plain(case: Case) -> dict[str, float]:
    """Train as most people write it: dense gradients, a torch optimiser, a DataLoader over
    tensors."""
    schema = Schema.load(Path(case.windows))
    model = PlainRanker(schema, case.model)
    optimizer = (
        torch.optim.Adagrad(model.parameters(), lr=ADAGRAD_RATE)
        if case.who().optimizer == "adagrad"
        else torch.optim.Adam(model.parameters(), lr=ADAM_RATE)
    )

    return _run_plain(case, schema, model, optimizer)


def run_sparse(case: Case) -> dict[str, float]:
    """Train as a good engineer writes it in plain PyTorch: gradients of the rows that were read,
    and a row-wise AdaGrad of ten lines."""
    schema = Schema.load(Path(case.windows))
    model = PlainRanker(schema, case.model, sparse=True)
    tables = [cast(nn.Parameter, table.weight) for table in model.tables]
    sums = [torch.zeros(len(table)) for table in tables]
    dense = torch.optim.Adam(model.ranker.parameters(), lr=ADAM_RATE)

    @torch.no_grad()
    def update_tables(*_: object) -> None:
        for table, total in zip(tables, sums, strict=True):
            assert table.grad is not None
            gradient = table.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            total[rows] += values.pow(2).mean(dim=1)
            table[rows] -= ADAGRAD_RATE * values / (total[rows].sqrt() + EPSILON).unsqueeze(1)
            table.grad = None

    dense.register_step_post_hook(update_tables)
    return _run_plain(case, schema, model, dense)


def _run_plain(
    case: Case, schema: Schema, model: PlainRanker, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    def step(batch: list[Tensor]) -> float:
        dense, ids, label = batch
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(dense, ids), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    def batches(window: Window) -> Iterator[list[Tensor]]:
        data = TensorDataset(*read_tensors(Path(case.windows) / window.name, schema))
        yield from DataLoader(data, batch_size=case.model.batch_size)

    contest = Contest(schema.windows, batches, partial(map, step), case.model.batch_size)
    return {**measure(contest, case.seconds, case.least_steps), "peak_gib": peak_gib()}


def read_tensors(folder: Path, schema: Schema) -> tuple[Tensor, Tensor, Tensor]:
    """A window as dense [N, W] float32, ids [N, F] int64 and label [N] float32."""
    frame = pl.read_parquet(folder / "part-*.parquet")
    values = frame.select(schema.dense).to_numpy()
    in_domain = np.eye(len(schema.domains))[frame["domain"].to_numpy()]
    dense = np.concatenate(
        [np.nan_to_num(values), np.isnan(values), in_domain], axis=1, dtype=np.float32
    )
    ids = frame.select([feature.name for feature in schema.categorical]).to_torch()
    return torch.from_numpy(dense), ids, frame["label"].to_torch()
