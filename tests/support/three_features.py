"""A data set of three categorical features, one of them a list, and two examples of it."""

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.partition_file import Partition

SCHEMA = Schema(
    dataset="test",
    dense=["price"],
    categorical=[
        CategoricalFeature("a", 5),
        CategoricalFeature("b", 6, "list"),
        CategoricalFeature("c", 7),
    ],
    domains=["feed"],
    windows=[],
    initial_base_rate=0.1,
    planted_groups={},
)
PARTITION = Partition("manual", [["a", "c"], ["b"]], ["a", "b", "c"])


def inputs(schema: Schema = SCHEMA) -> tuple[Tensor, KeyedJaggedTensor]:
    """Two examples: a has ids 1 and 4; b the list 2, 3 and an empty one; c 0 and 6."""
    draw = torch.Generator().manual_seed(1)
    values = torch.tensor([1, 4, 2, 3, 0, 6])
    dense = torch.randn(2, schema.dense_width, generator=draw)
    lengths = torch.tensor([1, 1, 2, 0, 1, 1])
    return dense, KeyedJaggedTensor(["a", "b", "c"], values, lengths=lengths)
