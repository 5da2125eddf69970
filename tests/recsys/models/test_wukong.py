"""Wukong's layer against its formulas written out, an example and a vector at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from recsys.models.wukong import FactorizationBlock, WukongLayer


def factorization_by_pair(block: FactorizationBlock, vectors: Tensor) -> Tensor:
    """[V, N] -> [outputs, N], from all V^2 dots."""
    count, rank = block.projection.shape
    dots = torch.stack(
        [torch.stack([(vectors[i] * vectors[j]).sum() for j in range(count)]) for i in range(count)]
    )
    projected = [
        sum(dots[i, j] * block.projection[j, k] for j in range(count))
        for i in range(count)
        for k in range(rank)
    ]
    row = layer_norm(torch.stack(projected), (count * rank,), block.norm.weight, block.norm.bias)  # type: ignore[arg-type]
    for linear in [module for module in block.hidden if isinstance(module, torch.nn.Linear)]:
        row = (linear.weight @ row + linear.bias).clamp(min=0)
    return (block.output.weight @ row + block.output.bias).view(block.outputs, block.dimension)


def mix(weight: Tensor, vectors: Tensor) -> Tensor:
    """Combination w of the vectors is sum over v of weight[w, v] vectors[v]."""
    return torch.stack([sum(row[v] * vectors[v] for v in range(len(vectors))) for row in weight])  # type: ignore[misc]


def layer_by_example(layer: WukongLayer, batch: Tensor) -> Tensor:
    found = []
    for vectors in batch:
        factorized = factorization_by_pair(layer.factorization, vectors)
        compressed = mix(layer.compression.weight, vectors)
        residual = vectors if layer.residual is None else mix(layer.residual.weight, vectors)
        both = torch.cat([factorized, compressed]) + residual
        found.append(layer_norm(both, (vectors.shape[1],), layer.norm.weight, layer.norm.bias))
    return torch.stack(found)


@pytest.mark.parametrize(
    "vectors", [4, 5]
)  # 5: as many as come out, so that the residual is the input itself
@pytest.mark.parametrize("widths", [[], [7], [7, 6]])
def test_layer_and_its_gradient_are_the_formulas(vectors: int, widths: list[int]) -> None:
    torch.manual_seed(vectors)
    layer = WukongLayer(vectors, 6, factorized=3, compressed=2, rank=2, widths=widths).double()
    batch = torch.randn(3, vectors, 6, dtype=torch.float64, requires_grad=True)
    found, expected = layer(batch), layer_by_example(layer, batch)
    assert found.shape == (3, layer.out_vectors, 6)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    wanted = [batch, *layer.parameters()]
    for one, other in zip(
        *(torch.autograd.grad((v * weights).sum(), wanted) for v in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)
