"""Ranks whose shards have no row: of a table with fewer rows than ranks the last ones hold
nothing."""

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection


def admit_empty_shards(sharded: ShardedEmbeddingBagCollection) -> None:
    """Let the CPU kernels of ``sharded`` hold tables without a row.

    FBGEMM takes a kernel whose host memory is empty for one on a GPU, and seeks the size of an
    empty table in those behind it, past the end where the last one is empty. A number and a row
    that belong to no table mend both; they are in no lookup, checkpoint or gradient.
    """
    for kernel in (module for lookup in sharded._lookups for module in lookup.modules()):
        if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen) and kernel.use_cpu:
            weights, first_rows = kernel.weights_host, kernel.hash_size_cumsum
            assert isinstance(weights, Tensor)
            assert isinstance(first_rows, Tensor)
            if weights.numel() == 0:
                kernel.weights_host = nn.Parameter(torch.zeros(1, dtype=weights.dtype))
            if first_rows[-1] == first_rows[-2]:
                first_rows[-1] += 1
