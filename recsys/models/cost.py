"""A ranker's cost: FLOPs per sample of a training step, counted by torch, and parameters.

Matrix products are counted by ``torch.utils.flop_counter`` through forward and backward, without
the gradient of the raw dense input, which is not needed: 6 FLOPs per multiply-add, 4 in the first
layer. That is the convention of Tables 4 and 5 in the DMT paper (arXiv 2403.00877). The counter
ignores elementwise work; the paper's numbers include that of the cross layers, 5 FLOPs per element
and layer. The gradient of the dots counts as two products, as in autograd and the paper; ours takes
one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.models.layers import DotInteraction, LowRankCrossNetwork
from recsys.models.ranker import Ranker

CROSS_FLOPS = 5  # x0 * y + x: two forward, three backward
SAMPLES = 2  # with one, a batch of matrices could be counted as a plain product


@dataclass(frozen=True)
class RankerCost:
    """FLOPs per sample, forward and backward, and parameters."""

    matrix_flops: float
    cross_flops: int
    dense_parameters: int
    table_parameters: int

    @property
    def flops(self) -> float:
        """All FLOPs per sample."""
        return self.matrix_flops + self.cross_flops

    @property
    def parameters(self) -> int:
        """All parameters, including tables."""
        return self.dense_parameters + self.table_parameters


def ranker_cost(ranker: Ranker) -> RankerCost:
    """The cost of ``ranker`` above its tables, including attention, on any device (also ``meta``);
    look-ups count as 0 FLOPs."""
    above = {name: p for name, p in ranker.named_parameters() if not name.startswith("embeddings.")}
    tables = sum(
        config.num_embeddings * config.embedding_dim
        for config in ranker.embeddings.embedding_bag_configs()
    )
    return RankerCost(
        matrix_flops=_matrix_flops(ranker, list(above.values())) / SAMPLES
        + sum(map(_saved_flops, ranker.modules())),
        cross_flops=sum(CROSS_FLOPS * _cross_elements(module) for module in ranker.modules()),
        dense_parameters=sum(parameter.numel() for parameter in above.values()),
        table_parameters=tables,
    )


def _matrix_flops(ranker: Ranker, parameters: list[nn.Parameter]) -> int:
    device, features = ranker.output.weight.device, len(ranker.feature_names)
    dense = torch.zeros(SAMPLES, ranker.dense_width, device=device)
    columns = len(ranker.sequences.columns(piece.name for piece in ranker.pieces))
    embeddings = torch.zeros(
        SAMPLES, columns, ranker.embedding_dimension, device=device, requires_grad=True
    )
    lengths = torch.ones(features * SAMPLES, dtype=torch.int64, device=device)
    # Attention reads their lengths
    ids = KeyedJaggedTensor(ranker.feature_names, lengths, lengths=lengths)
    with FlopCounterMode(display=False) as counter:
        # The counter's module tracker does not accept leaf tensors as inputs of modules.
        pooled = ranker.pool(embeddings.clone(), ids)
        logits: dict[str, Tensor] = ranker.heads(ranker.represent_embedded(dense, pooled))
        torch.autograd.grad([logit.sum() for logit in logits.values()], [embeddings, *parameters])
    return counter.get_total_flops()


def _cross_elements(module: nn.Module) -> int:
    if not isinstance(module, LowRankCrossNetwork):
        return 0
    return module.in_features * len(module.downs)


def _saved_flops(module: nn.Module) -> int:
    """The FLOPs of the second product, which our gradient of dots avoids."""
    return 2 * module.vectors**2 * module.dimension if isinstance(module, DotInteraction) else 0
