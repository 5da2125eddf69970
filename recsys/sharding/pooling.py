"""Mean pooling for tables with split rows: sum over ranks, then divide by the number of ids.

TorchRec divides by this number plus 1e-6, also for other tables' features, and does not divide at
all for grids.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    LazyAwaitable,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.planning.tables import SHARDINGS, Kind


class MeanPooling:
    """Divides pooled sums by the numbers of ids; a forward hook of a sharded collection.

    Args:
        features: feature names by the key of the sum.
    """

    def __init__(self, features: dict[str, str]) -> None:
        self.features = features

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], output: LazyAwaitable[KeyedTensor]
    ) -> None:
        """Divide once ``output`` has been waited for."""
        sparse: KeyedJaggedTensor = inputs[0]
        lengths = sparse.lengths().view(len(sparse.keys()), -1)  # [F, B]
        counts = {
            key: lengths[sparse.keys().index(name)].clamp(min=1)
            for key, name in self.features.items()
        }
        output.callbacks.append(lambda sums: _divide(sums, counts))


def sum_split_rows(
    collection: EmbeddingBagCollection, plan: ShardingPlan, path: str
) -> MeanPooling | None:
    """Switch mean-pooled tables of ``collection`` whose rows ``plan`` splits to sum pooling;
    returns the hook that divides."""
    placed = plan.plan[path]
    assert isinstance(placed, EmbeddingModuleShardingPlan)
    features: dict[str, str] = {}
    configs = collection.embedding_bag_configs()
    for config, keys in zip(configs, get_embedding_names_by_table(configs), strict=True):
        kind = cast(Kind, placed[config.name].sharding_type)
        if config.pooling is PoolingType.MEAN and SHARDINGS[kind].rows:
            config.pooling = PoolingType.SUM
            features |= zip(keys, config.feature_names, strict=True)
    return MeanPooling(features) if features else None


def _divide(sums: KeyedTensor, counts: dict[str, Tensor]) -> KeyedTensor:
    values = sums.values()  # [B, columns of all features]
    one = values.new_ones(values.shape[0])
    divisors = torch.stack([counts.get(name, one).to(values.dtype) for name in sums.keys()], dim=1)  # noqa: SIM118
    widths = torch.tensor(sums.length_per_key(), device=values.device)
    divided = values / divisors.repeat_interleave(widths, dim=1, output_size=values.shape[1])
    return KeyedTensor(
        keys=sums.keys(), length_per_key=sums.length_per_key(), values=divided, key_dim=1
    )
