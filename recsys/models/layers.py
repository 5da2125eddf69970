"""Layers from which rankers and tower modules are built."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn.functional import pad


def perceptron(in_features: int, widths: list[int]) -> nn.Sequential:
    """Linear layers of ``widths``, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers)


class DotInteraction(nn.Module):
    """The first vector, followed by the dots of all pairs of vectors (DLRM, arXiv 1906.00091)."""

    def __init__(self, vectors: int, dimension: int) -> None:
        super().__init__()
        self.vectors, self.dimension = vectors, dimension
        rows, columns = torch.triu_indices(vectors, vectors, offset=1)
        # [P], places in [V, V]
        self.register_buffer("pairs", rows * vectors + columns, persistent=False)
        places = torch.full((vectors, vectors), rows.numel())
        places[rows, columns] = places[columns, rows] = torch.arange(rows.numel())
        # [V*V], pair of a place; P: none
        self.register_buffer("places", places.flatten(), persistent=False)
        self.out_features = dimension + rows.numel()

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, V, D] -> [B, D + V(V-1)/2]."""
        dots = PairDots.apply(vectors, self.get_buffer("pairs"), self.get_buffer("places"))
        return torch.cat([vectors[:, 0], dots], dim=1)


class PairDots(Function):
    """Dots x_i x_j with a gradient of one product: with G symmetric, d(X X^T) = G X, where autograd
    takes two."""

    @staticmethod
    def forward(ctx: FunctionCtx, vectors: Tensor, pairs: Tensor, places: Tensor) -> Tensor:
        """[B, V, D], [P], [V*V] -> [B, P]."""
        ctx.save_for_backward(vectors, places)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        if torch.onnx.is_in_onnx_export():  # ONNX Runtime is three times as fast this way
            return dots.gather(1, pairs.expand_as(dots[:, : len(pairs)]))
        return dots.index_select(1, pairs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """[B, P] -> [B, V, D]."""
        vectors, places = ctx.saved_tensors
        count = vectors.shape[1]
        padded = pad(gradients[0], (0, 1))  # [B, P + 1]; the diagonal has no gradient
        symmetric = padded.index_select(1, places).view(-1, count, count)
        return torch.bmm(symmetric, vectors.to(symmetric.dtype)).to(vectors.dtype), None, None


class LowRankCrossNetwork(nn.Module):
    """DCNv2's low-rank cross layers x <- x0 * (W V x + b) + x (arXiv 2008.13535)."""

    def __init__(self, in_features: int, layers: int, rank: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.downs = nn.ModuleList(nn.Linear(in_features, rank, bias=False) for _ in range(layers))
        self.ups = nn.ModuleList(nn.Linear(rank, in_features) for _ in range(layers))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, N] -> [B, N]."""
        crossed = inputs
        for down, up in zip(self.downs, self.ups, strict=True):
            crossed = inputs * up(down(crossed)) + crossed
        return crossed
