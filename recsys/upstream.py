"""Private parts of PyTorch, TorchRec and FBGEMM that this library uses.

Nothing else in recsys uses private parts, except the subclasses listed in docs/upstream.md, which
explains every use and names a replacement. A test per use says which assumption broke.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any, cast

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torch.distributed.remote_device import _remote_device as RemoteDevice
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed import comm
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbeddingBag
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import LazyAwaitable, ShardingType
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

__all__ = [
    "EnumerableShardingSpec",
    "FakeTensorMode",
    "HashStore",
    "LookUpAlone",
    "PrefixStore",
    "RemoteDevice",
    "ShardMetadata",
    "ShardedTensor",
    "Store",
    "TCPStore",
    "TableKernel",
    "TorchDispatchMode",
    "admit_empty_shards",
    "apply_optimizer_in_backward",
    "feature_tables",
    "forget_groups_of_other_hosts",
    "offset_in_file",
    "put_new_tables_in",
    "table_configs",
    "table_shapes",
    "unwrap_replicated_tables",
]

TableKernel = SplitTableBatchedEmbeddingBagsCodegen
# (kernel, number of elements, their type, start of each table) -> zeros [elements] on the CPU
Allocate = Callable[[TableKernel, int, torch.dtype, list[int]], Tensor]


def offset_in_file(fake: Tensor) -> int:
    """The file offset of a tensor that torch.load has read in FakeTensorMode."""
    return cast(Any, fake.untyped_storage())._checkpoint_offset


def table_configs(sharded: ShardedEmbeddingBagCollection) -> dict[str, BaseEmbeddingConfig]:
    """The configuration of every table of ``sharded``, including those on other ranks, by name."""
    return dict(sharded._table_name_to_config)


def unwrap_replicated_tables(sharded: ShardedEmbeddingBagCollection) -> None:
    """Remove DDP from the replicated tables: it expects a backward pass after each forward pass."""
    lookups = sharded._lookups
    lookups[:] = [m.module if isinstance(m, DistributedDataParallel) else m for m in lookups]


def forget_groups_of_other_hosts(ranks_per_host: int) -> None:
    """Make TorchRec create its groups of hosts again if they belong to another process group or
    another host size; it keeps those of its first hierarchical table for good."""
    intra, cross = comm._INTRA_PG, comm._CROSS_PG
    known = distributed.distributed_c10d._world.pg_map
    if intra not in known or cross not in known or intra.size() != ranks_per_host:
        comm._INTRA_PG = comm._CROSS_PG = None


class LookUpAlone:
    """The forward pass of a collection whose tables are all whole on a single rank: it runs the
    kernels' look-up directly on the ids, bit-identical to TorchRec's but without an exchange.

    The exchange takes several times as long as the look-up of a small batch. The first call uses
    TorchRec's, which checks the features.
    """

    def __init__(self, sharded: ShardedEmbeddingBagCollection) -> None:
        self._sharded = sharded
        (self._lookup,) = sharded._lookups
        configs = cast(list[GroupedEmbeddingConfig], self._lookup.grouped_configs)
        self._features = [name for config in configs for name in config.feature_names()]
        self._checked = False

    @staticmethod
    def fits(sharded: ShardedEmbeddingBagCollection) -> bool:
        """Whether the forward pass of ``sharded``, on one rank, does nothing else."""
        kinds = {one.sharding_type for one in sharded.module_sharding_plan.values()}
        return (
            kinds == {ShardingType.TABLE_WISE.value}
            and "input_dist" not in vars(sharded)  # set for positions of sequences
            and not sharded._has_mean_pooling_callback
        )

    def __call__(self, sparse: KeyedJaggedTensor) -> KeyedTensor | LazyAwaitable[KeyedTensor]:
        """Pooled embeddings of every feature's ids."""
        sharded = self._sharded
        if not self._checked:
            self._checked = True
            return type(sharded).forward(sharded, sparse)
        keys = sparse.keys()
        if keys != self._features:
            sparse = sparse.permute([keys.index(name) for name in self._features])
        found = self._lookup(sparse)
        if sharded.post_lookup_tracker_fn is not None:  # set for differential checkpoints
            sharded.post_lookup_tracker_fn(sparse, found, sharded, None)
        return KeyedTensor(sharded._embedding_names, sharded._embedding_dims, found, key_dim=1)


def admit_empty_shards(sharded: ShardedEmbeddingBagCollection) -> None:
    """Let the CPU kernels of ``sharded`` hold tables without rows: if a table has fewer rows than
    ranks, the last ranks have none.

    FBGEMM mistakes a kernel with empty host memory for a GPU kernel; a placeholder element that
    belongs to no table prevents that. Its backward pass tells the tables of neighbouring features
    apart by the number of rows before them, and so confuses an empty table with the next one, even
    of another width; here every table counts at least one row.
    """
    for kernel in (module for lookup in sharded._lookups for module in lookup.modules()):
        if isinstance(kernel, TableKernel) and kernel.use_cpu:
            weights, rows_before = kernel.weights_host, kernel.hash_size_cumsum
            assert isinstance(weights, Tensor)
            assert isinstance(rows_before, Tensor)
            if weights.numel() == 0:
                kernel.weights_host = nn.Parameter(torch.zeros(1, dtype=weights.dtype))
            starts = [0, *accumulate(max(rows, 1) for rows, _ in table_shapes(kernel))]
            of_features = [*feature_tables(kernel), len(starts) - 1]
            rows_before.copy_(torch.tensor([starts[table] for table in of_features]))


@contextmanager
def put_new_tables_in(allocate: Allocate) -> Iterator[None]:
    """Kernels created in this context get the host memory for tables and optimiser state from
    ``allocate``, and do not overwrite its contents.

    TorchRec has no way to pass in buffers, and fills the whole table with random rows first.
    """
    apply_split = TableKernel._apply_split

    def allocated(
        kernel: Any, split: Any, prefix: str, dtype: torch.dtype, *rest: Any, **more: Any
    ) -> None:
        if split.host_size:
            buffer = allocate(kernel, split.host_size, dtype, split.offsets)
            more["preallocated_host_buffer"] = buffer
        apply_split(kernel, split, prefix, cast(Any, dtype), *rest, **more)

    with ExitStack() as stack:
        _replace(stack, TableKernel, "_apply_split", allocated)
        _replace(stack, BaseBatchedEmbeddingBag, "init_parameters", lambda module: None)
        yield


def table_shapes(kernel: TableKernel) -> list[tuple[int, int]]:
    """(rows, columns) of each table of ``kernel``, in memory order."""
    return [(rows, columns) for rows, columns, *_ in kernel.embedding_specs]


def feature_tables(kernel: TableKernel) -> list[int]:
    """The index in :func:`table_shapes` of the table in which each feature of ``kernel`` is looked
    up."""
    return list(kernel.feature_table_map)


def _replace(stack: ExitStack, owner: type, name: str, function: Callable[..., Any]) -> None:
    """Set an attribute until ``stack`` is closed."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, function)
