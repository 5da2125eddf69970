"""Create an engine for a model with towers."""

from torch import nn

from recsys.models.partition_file import Partition
from recsys.towers.transform import transform
from recsys.training.engine import Engine
from recsys.training.settings import TrainSettings
from recsys.training.side_model import SideModel


def tower_engine(
    model: nn.Module,
    settings: TrainSettings,
    seed: int,
    partition: Partition | None,
    side: SideModel | None = None,
) -> Engine:
    """An engine that keeps each tower on its hosts if ``settings.tower_transform`` is set.

    Args:
        model, settings, seed, side: as for :class:`Engine`.
        partition: the model's towers; None for a model without towers.

    Raises:
        InputError: no plan fits the settings, or the hosts do not fit the towers.
    """
    transforms = settings.tower_transform and partition is not None
    return Engine(model, settings, seed, partition, side, transform if transforms else None)
