"""The dot interaction against dots written out pair by pair."""

import pytest
import torch
from torch import Tensor

from recsys.models.layers import DotInteraction


def dots_by_pair(vectors: Tensor) -> Tensor:
    """[B, V, D] -> [B, D + V(V-1)/2], a dot at a time."""
    count = vectors.shape[1]
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    dots = [(vectors[:, i] * vectors[:, j]).sum(dim=1, keepdim=True) for i, j in pairs]
    return torch.cat([vectors[:, 0], *dots], dim=1)


@pytest.mark.parametrize(("count", "dimension"), [(2, 3), (5, 4), (27, 8)])
def test_dots_and_their_gradient_are_those_of_every_pair(count: int, dimension: int) -> None:
    draw = torch.Generator().manual_seed(count)
    vectors = torch.randn(
        6, count, dimension, generator=draw, dtype=torch.float64, requires_grad=True
    )
    layer = DotInteraction(count, dimension)
    found, expected = layer(vectors), dots_by_pair(vectors)
    assert found.shape == (6, layer.out_features)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((dots * weights).sum(), vectors)[0] for dots in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


def test_one_vector_has_no_pair() -> None:
    vectors = torch.randn(2, 1, 3, requires_grad=True)
    dots = DotInteraction(1, 3)(vectors)
    dots.sum().backward()
    assert torch.equal(dots, vectors[:, 0])
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, torch.ones(2, 1, 3))


def test_gradient_has_the_type_of_the_vectors_under_autocast() -> None:
    vectors = torch.randn(4, 5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dots = DotInteraction(5, 8)(vectors)
    dots.float().sum().backward()
    assert vectors.grad is not None
    exact = torch.autograd.grad(dots_by_pair(vectors).sum(), vectors)[0]
    torch.testing.assert_close(vectors.grad, exact, rtol=2e-2, atol=5e-2)
