"""Initial embedding rows, which depend only on (seed, table, row), never on plan or world size."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from recsys.models.slices import Piece

ROWS_PER_BLOCK = 65536


def initial_rows(
    seed: int,
    table: str,
    num_embeddings: int,
    dimension: int,
    start: int,
    stop: int,
    zero_columns: int = 0,
) -> Tensor:
    """Rows [start, stop) of a table: [stop - start, dimension] float32, uniform in
    +-1/sqrt(num_embeddings).

    Rows are drawn in blocks, each with its own generator, so that any shard can be filled
    independently. A column slice (recsys/models/slices.py) gets its columns of the whole table's
    rows. The whole table's first ``zero_columns`` columns are 0.
    """
    piece = Piece.parse(table)
    if piece.count > 1:
        columns = piece.columns(dimension * piece.count)
        whole = initial_rows(
            seed,
            piece.feature,
            num_embeddings,
            dimension * piece.count,
            start,
            stop,
            zero_columns,
        )
        return whole[:, columns.start : columns.stop]
    if stop <= start:
        return torch.empty(0, dimension)
    first, last = start // ROWS_PER_BLOCK, (stop - 1) // ROWS_PER_BLOCK
    bound = num_embeddings**-0.5
    offset = first * ROWS_PER_BLOCK
    counts = [ROWS_PER_BLOCK] * (last - first) + [stop - last * ROWS_PER_BLOCK]
    blocks = [
        _block(seed, table, first + index, rows, dimension, bound)
        for index, rows in enumerate(counts)
    ]
    whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    rows = whole[start - offset : stop - offset]
    rows[:, :zero_columns] = 0.0
    return rows


def row_blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in pieces, each within one block of :func:`initial_rows`."""
    while start < stop:
        end = min((start // ROWS_PER_BLOCK + 1) * ROWS_PER_BLOCK, stop)
        yield start, end
        start = end


def _block(seed: int, table: str, block: int, rows: int, dimension: int, bound: float) -> Tensor:
    """The first ``rows`` of a block: a short draw returns the first numbers of a longer one."""
    digest = hashlib.sha256(f"{seed}/{table}/{block}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(rows, dimension).uniform_(-bound, bound, generator=generator)
