"""Wukong's layer: a factorization machine block beside a linear compression block (arXiv
2403.02545, section 3)."""

import torch
from torch import Tensor, nn

from recsys.models.layers import perceptron


class FactorizationBlock(nn.Module):
    """``outputs`` vectors from the dots of all pairs of vectors, with a projection of rank
    ``rank``.

    FM(X) = X X^T Y costs V N rank instead of V^2 N, because X^T Y is computed first (section 3.4).
    """

    def __init__(
        self, vectors: int, dimension: int, outputs: int, rank: int, widths: list[int]
    ) -> None:
        super().__init__()
        self.outputs, self.dimension = outputs, dimension
        self.projection = nn.Parameter(torch.empty(vectors, rank))  # Y
        nn.init.xavier_uniform_(self.projection)
        self.norm = nn.LayerNorm(vectors * rank)
        self.hidden = perceptron(vectors * rank, widths)
        self.output = nn.Linear(widths[-1] if widths else vectors * rank, outputs * dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, V, N] -> [B, outputs, N]."""
        compressed = vectors.transpose(1, 2) @ self.projection  # [B, N, rank]
        dots = torch.bmm(vectors, compressed.to(vectors.dtype)).flatten(1)  # [B, V rank]
        return self.output(self.hidden(self.norm(dots))).unflatten(
            1, (self.outputs, self.dimension)
        )


class WukongLayer(nn.Module):
    """LayerNorm(concatenated factorization block and linear compression + residual).

    Each layer doubles the order of the interactions that the stack can express, plus one. The
    residual is the layer's input, linearly mapped to the new number of vectors if it changes.
    """

    def __init__(
        self,
        vectors: int,
        dimension: int,
        factorized: int,
        compressed: int,
        rank: int,
        widths: list[int],
    ) -> None:
        super().__init__()
        self.out_vectors = factorized + compressed
        self.factorization = FactorizationBlock(vectors, dimension, factorized, rank, widths)
        self.compression = nn.Linear(vectors, compressed, bias=False)
        same = vectors == self.out_vectors
        self.residual = None if same else nn.Linear(vectors, self.out_vectors, bias=False)
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, V, N] -> [B, factorized + compressed, N]."""
        factorized = self.factorization(vectors)
        compressed = _mix(self.compression, vectors)
        residual = vectors if self.residual is None else _mix(self.residual, vectors)
        return self.norm(torch.cat([factorized, compressed.to(factorized.dtype)], dim=1) + residual)


def _mix(linear: nn.Linear, vectors: Tensor) -> Tensor:
    """Linear combinations of whole vectors: [B, V, N] -> [B, W, N]."""
    return linear(vectors.transpose(1, 2)).transpose(1, 2)
