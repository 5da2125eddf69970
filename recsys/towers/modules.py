"""Tower modules: each tower compresses its features' embeddings (DMT, arXiv 2403.00877, section 3.2)."""

from torch import Tensor, nn

from recsys.models.layers import LowRankCrossNetwork


class DotTower(nn.Module):
    """DLRM's tower module with c=1, p=0: one vector a feature, projected to ``out_dimension``.

    A tower of one feature is the identity where the dimensions allow it.
    """

    def __init__(self, features: int, dimension: int, out_dimension: int) -> None:
        super().__init__()
        identity = features == 1 and dimension == out_dimension
        self.project: nn.Module = nn.Identity() if identity else nn.Linear(dimension, out_dimension)
        self.vectors = features

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, F, N] -> [B, F, D]."""
        return self.project(embeddings)


class CrossTower(nn.Module):
    """DCN's tower module: cross layers, then one vector of ``out_dimension`` for the whole tower.

    A tower of one feature is the identity.
    """

    def __init__(self, features: int, dimension: int, out_dimension: int, layers: int, rank: int) -> None:
        super().__init__()
        width = features * dimension
        self.out_features = width if features == 1 else out_dimension
        self.compress: nn.Module = (
            nn.Identity()
            if features == 1
            else nn.Sequential(LowRankCrossNetwork(width, layers, rank), nn.Linear(width, out_dimension))
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, F, N] -> [B, D]; [B, N] for a single feature."""
        return self.compress(embeddings.flatten(1))
