"""Logistic regression on ids and dense features: main effects, one pass, in time order."""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.baselines.base_rate import starting_logits
from recsys.baselines.settings import LogisticSettings
from recsys.data.loader import Batch
from recsys.data.schema import Schema


class LogisticRegression(nn.Module):
    """A weight per id (for a list, their mean) and per dense input, each with its own AdaGrad rate.

    It starts at each domain's base rate of the first window.

    Args:
        schema: gives the tables and the width of the dense input, which ends with the domain as
            one-hot.
    """

    def __init__(self, schema: Schema, settings: LogisticSettings) -> None:
        super().__init__()
        sizes = [feature.num_embeddings for feature in schema.categorical]
        self._first_rows = torch.tensor(np.cumsum([0, *sizes]))
        self._batch_size = settings.batch_size
        rows = int(self._first_rows[-1])
        self.ids = nn.EmbeddingBag(max(rows, 1), 1, mode="sum", sparse=True)
        self.dense = nn.Linear(schema.dense_width, 1, bias=False)
        nn.init.zeros_(self.ids.weight)
        nn.init.zeros_(self.dense.weight)
        with torch.no_grad():
            self.dense.weight[0, -len(schema.domains) :] = torch.tensor(starting_logits(schema))
        self._optimizer = torch.optim.Adagrad(
            self.parameters(),
            lr=settings.learning_rate,
            initial_accumulator_value=settings.initial_accumulator,
        )

    def forward(self, dense: Tensor, ids: Tensor, parts: Tensor, offsets: Tensor) -> Tensor:
        """Logits [B] from ``dense`` [B, W] and the ids of :func:`by_example`."""
        return (self.dense(dense) + self.ids(ids, offsets, per_sample_weights=parts)).squeeze(1)

    def predict(self, batch: Batch) -> NDArray[np.floating]:
        """Logits [B]."""
        with torch.no_grad():
            return self(batch.dense, *by_example(batch.sparse, self._first_rows)).numpy()

    def learn(self, batch: Batch) -> None:
        """Train on examples whose labels have become known, ``batch_size`` at a time."""
        ids, parts, offsets = by_example(batch.sparse, self._first_rows)
        rows = len(batch.label)
        ends = [*offsets.tolist(), len(ids)]
        # Torch warns unless it is told whether to check the sparse tensors that it creates
        with torch.sparse.check_sparse_tensor_invariants(False):
            for start, stop in pairwise([*range(0, rows, self._batch_size), rows]):
                own = slice(ends[start], ends[stop])
                logits = self(
                    batch.dense[start:stop], ids[own], parts[own], offsets[start:stop] - ends[start]
                )
                self._optimizer.zero_grad()
                losses = binary_cross_entropy_with_logits(
                    logits, batch.label[start:stop], batch.weight[start:stop], reduction="sum"
                )
                losses.backward()
                self._optimizer.step()


def by_example(sparse: KeyedJaggedTensor, first_rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ids of a batch of B examples, example by example.

    Args:
        sparse: ids of F features, feature by feature.
        first_rows: [F + 1], where each feature's rows begin in one joint table.

    Returns:
        Rows of the joint table [N], the weight of each in its feature's mean [N], and where each
        example's ids begin [B].
    """
    lengths = sparse.lengths().view(-1, sparse.stride())  # [F, B]
    each = lengths.reshape(-1)
    rows = sparse.values() + first_rows[:-1].repeat_interleave(lengths.sum(dim=1))
    example = torch.arange(sparse.stride()).repeat(len(lengths)).repeat_interleave(each)
    order = example.argsort(stable=True)
    parts = (1.0 / each.float()).repeat_interleave(each)
    offsets = lengths.sum(dim=0).cumsum(0)
    return rows[order], parts[order], torch.cat([offsets.new_zeros(1), offsets[:-1]])
