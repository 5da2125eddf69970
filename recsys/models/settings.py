"""Size and shape of a ranker."""

from typing import Literal

from pydantic import Field, PositiveInt

from recsys.config import Settings


class ModelSettings(Settings):
    """A DLRM (pairwise dots) or DCNv2 (low-rank cross layers) ranker.

    ``dense_layers`` is the arch over the dense features; its output is projected to
    ``embedding_dimension``. ``over_layers`` stands above the interaction; its last width is the
    size of the representation that the heads read. ``cross_*`` are read by ``dcn`` only,
    ``tower_*`` only with ``towers: true``: one tower module a group of the partition, each output
    vector ``tower_dimension`` wide.
    """

    architecture: Literal["dlrm", "dcn"] = "dlrm"
    embedding_dimension: PositiveInt = Field(default=16, multiple_of=4)
    dense_layers: list[PositiveInt] = Field(default=[64])
    over_layers: list[PositiveInt] = Field(default=[128, 64], min_length=1)
    cross_layers: PositiveInt = 2
    cross_rank: PositiveInt = 32
    towers: bool = False
    tower_dimension: PositiveInt = 8
    tower_cross_layers: PositiveInt = 1
