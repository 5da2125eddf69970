"""DeepCTR-Torch (PyPI, 0.3.0): its tables, blocks and training step around the same model.

Imported only with the folder of its package on the path (see bench/README.md).
"""

# The project does not install the package
# pyright: reportMissingImports=false

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.layers import DNN, InnerProductLayer
from deepctr_torch.models.basemodel import BaseModel
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from bench.training.cases import ADAM_RATE, DENSE_LAYERS, OVER_LAYERS, Case, Model
from bench.training.contenders import read_tensors
from bench.training.loop import Contest, measure, peak_gib
from recsys.data.schema import Schema, Window
from recsys.models.layers import LowRankCrossNetwork


class DeepCTRRanker(BaseModel):
    """The ranker of ``model``; the low-rank cross layers are ours, as for FuxiCTR."""

    def __init__(self, schema: Schema, model: Model) -> None:
        columns = [DenseFeat(name, 1) for name in schema.dense]
        columns += [
            SparseFeat(f.name, f.num_embeddings, model.dimension) for f in schema.categorical
        ]
        super().__init__([], columns, l2_reg_linear=0, l2_reg_embedding=0)
        settings, fields = model.settings(), len(schema.categorical) + 1
        self.dense_arch = DNN(len(schema.dense), DENSE_LAYERS)
        self.last = nn.Linear(DENSE_LAYERS[-1], model.dimension)
        self.dots, width = None, fields * model.dimension
        if model.architecture == "dlrm":
            self.dots = InnerProductLayer()
            width = model.dimension + fields * (fields - 1) // 2
        else:
            self.cross = LowRankCrossNetwork(width, settings.cross_layers, settings.cross_rank)
        self.over_arch = DNN(width, OVER_LAYERS)
        self.head = nn.Linear(OVER_LAYERS[-1], 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, numbers and ids as float32] -> probability [B, 1]."""
        ids, numbers = self.input_from_feature_columns(
            inputs, self.dnn_feature_columns, self.embedding_dict
        )
        dense = self.last(self.dense_arch(torch.cat(numbers, dim=1)))  # [B, N]
        vectors = [dense.unsqueeze(1), *ids]
        crossed = (
            self.cross(torch.cat(vectors, dim=1).flatten(1))
            if self.dots is None
            else torch.cat([dense, self.dots(vectors).flatten(1)], dim=1)
        )
        return self.out(self.head(self.over_arch(crossed)))


def run_deepctr(case: Case) -> dict[str, float]:
    """Train with what BaseModel.fit does per batch: Adam on dense gradients of a summed loss."""
    schema = Schema.load(Path(case.windows))
    model = DeepCTRRanker(schema, case.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_RATE)

    def step(batch: list[Tensor]) -> float:
        inputs, label = batch
        predicted = model(inputs).squeeze(-1)
        optimizer.zero_grad()
        loss = binary_cross_entropy(predicted, label, reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        total.backward()
        optimizer.step()
        return loss.item()

    def batches(window: Window) -> Iterator[list[Tensor]]:
        dense, ids, label = read_tensors(Path(case.windows) / window.name, schema)
        inputs = torch.cat([dense[:, : len(schema.dense)], ids.float()], dim=1)
        yield from DataLoader(TensorDataset(inputs, label), batch_size=case.model.batch_size)

    contest = Contest(schema.windows, batches, partial(map, step), case.model.batch_size)
    return {**measure(contest, case.seconds, case.least_steps), "peak_gib": peak_gib()}
