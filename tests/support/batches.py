"""Schemas and seeded global batches, each rank its share."""

from functools import cache

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.data.schema import CategoricalFeature, Schema

Features = dict[str, tuple[int, str]]  # (number of ids, kind) by name


def schema_of(features: Features) -> Schema:
    """The categorical ``features`` beside two dense ones, price and age."""
    return Schema(
        dataset="test",
        dense=["price", "age"],
        categorical=[
            CategoricalFeature(name, rows, kind) for name, (rows, kind) in features.items()
        ],
        domains=["feed"],
        windows=[],
        initial_base_rate=0.2,
        planted_groups={},
    )


def random_share(
    features: Features,
    dense_width: int,
    rows: int,
    seed: int,
    rank: int,
    world_size: int,
    few_bits: bool = False,
) -> Batch:
    """Rank ``rank``'s share of a seeded global batch of ``rows``, padded with a copy of row 0.

    A list holds up to three ids. ``few_bits``: whole dense numbers and lists of at most two, so
    that sums are exact in fp32.
    """
    dense, label, bags = _drawn(tuple(features.items()), dense_width, rows, seed, few_bits)
    count = -(-rows // world_size)
    wanted = range(rank * count, (rank + 1) * count)
    index = [i if i < rows else 0 for i in wanted]
    ids = torch.arange(len(index))
    return Batch(
        dense=dense[index],
        sparse=KeyedJaggedTensor(
            list(features),
            torch.tensor([v for bag in bags for i in index for v in bag[i]], dtype=torch.int64),
            lengths=torch.tensor([len(bag[i]) for bag in bags for i in index], dtype=torch.int64),
        ),
        label=label[index],
        weight=torch.tensor([float(i < rows) for i in wanted]),
        domain=torch.zeros_like(ids),
        group=ids,
        example_id=ids,
        event_time=ids,
        score=torch.full((len(index),), float("nan")),
        staleness_ms=torch.zeros(len(index), dtype=torch.int64),
        global_rows=rows,
    )


# Every case of a grid trains on the same batches, and a draw an example takes longer than a step
@cache
def _drawn(
    features: tuple[tuple[str, tuple[int, str]], ...],
    dense_width: int,
    rows: int,
    seed: int,
    few_bits: bool,
) -> tuple[Tensor, Tensor, list[list[list[int]]]]:
    """Dense inputs [rows, dense_width], labels [rows], ids of every row by feature."""
    draw = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, dense_width, generator=draw)
    label = torch.randint(0, 2, (rows,), generator=draw).float()
    bags: list[list[list[int]]] = []
    for _, (size, kind) in features:
        lengths = [1] * rows
        if kind == "list":
            lengths = torch.randint(0, 3 if few_bits else 4, (rows,), generator=draw).tolist()
        bags.append([torch.randint(0, size, (n,), generator=draw).tolist() for n in lengths])
    return dense.round() if few_bits else dense, label, bags
