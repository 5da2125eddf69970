"""Shapes of tower modules."""

import torch
from torch import nn

from recsys.towers.modules import CrossTower, DotTower


def test_dot_tower_projects_every_feature() -> None:
    assert DotTower(3, 8, 4)(torch.randn(5, 3, 8)).shape == (5, 3, 4)


def test_cross_tower_gives_one_vector() -> None:
    tower = CrossTower(3, 8, 4, layers=2, rank=2)
    assert tower(torch.randn(5, 3, 8)).shape == (5, tower.out_features) == (5, 4)


def test_a_single_feature_passes_unchanged() -> None:
    embeddings = torch.randn(5, 1, 8)
    assert isinstance(DotTower(1, 8, 8).project, nn.Identity)
    torch.testing.assert_close(CrossTower(1, 8, 4, layers=1, rank=2)(embeddings), embeddings[:, 0])
