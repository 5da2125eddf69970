"""The parts that rankers and tower modules are composed of."""

import torch
from torch import Tensor, nn


def perceptron(in_features: int, widths: list[int]) -> nn.Sequential:
    """Linear layers of ``widths``, a ReLU after each."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers)


class DotInteraction(nn.Module):
    """Dots of all pairs of vectors, after the first vector itself (DLRM, arXiv 1906.00091)."""

    def __init__(self, vectors: int, dimension: int) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pairs", rows * vectors + columns, persistent=False)
        self.out_features = dimension + rows.numel()

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, V, D] -> [B, D + V(V-1)/2]."""
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)  # [B, V*V]
        return torch.cat([vectors[:, 0], dots.index_select(1, self.get_buffer("pairs"))], dim=1)


class LowRankCrossNetwork(nn.Module):
    """DCNv2 cross layers x <- x0 * (W V x + b) + x of low rank (arXiv 2008.13535)."""

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
