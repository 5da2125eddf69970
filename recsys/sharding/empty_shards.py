"""Ranks whose shards have no row: of a table with fewer rows than ranks the last ones hold nothing."""

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import nn


def keep_empty_kernels_on_the_host(model: nn.Module) -> None:
    """Let the CPU kernels of ``model`` that hold no row look nothing up, as those of other ranks look up their rows.

    FBGEMM takes a kernel whose host memory is empty for one on a GPU and refuses the other ranks' CPU tensors.
    One number that belongs to no row keeps it here; it is in no table, no checkpoint and no gradient.
    """
    for kernel in model.modules():
        if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen) and kernel.use_cpu:
            weights = kernel.weights_host
            if weights.numel() == 0:
                kernel.weights_host = nn.Parameter(torch.zeros(1, dtype=weights.dtype))
