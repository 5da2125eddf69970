"""Build a ranker from settings; the same seed gives the same ranker on every rank."""

import torch

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.models.initial_tables import initial_rows
from recsys.models.names import TABLE_PREFIX
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.sequences import RankerBagConfig
from recsys.models.settings import ModelSettings
from recsys.models.slices import Piece


def build_ranker(
    schema: Schema,
    settings: ModelSettings,
    partition: Partition | None = None,
    seed: int = 0,
    table_device: str = "cpu",
    table_prefix: str = TABLE_PREFIX,
) -> Ranker:
    """A ranker whose weights depend only on ``seed``.

    For an engine, pass ``table_device="meta"``: it writes the same initial tables into its shards.

    Raises:
        InputError: the settings want towers and there is no partition, or it does not match the
            schema.

    Example::

        >>> from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
        >>> from recsys.data.schema import CategoricalFeature
        >>> schema = Schema("toy", ["price"], [CategoricalFeature("ad", 100)], ["all"], [], 0.2, {})
        >>> ranker = build_ranker(schema, ModelSettings(architecture="dcn"), seed=1)
        >>> lengths = torch.tensor([1, 1])  # one id per example
        >>> ids = KeyedJaggedTensor(["ad"], torch.tensor([7, 8]), lengths=lengths)
        >>> logits = ranker(torch.zeros(2, schema.dense_width), ids)  # price, missing, domain
        >>> torch.sigmoid(logits["serving"]).tolist()  # a new ranker predicts the base rate
        [0.2..., 0.2...]
    """
    towers, pieces = None, None
    if settings.towers and partition is None:
        raise InputError(
            f"{settings.where('towers')}: is true but no partition was given; run the partition "
            "stage or set false"
        )
    if settings.towers and partition is not None:
        towers, pieces = _tower_positions(schema, partition)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ranker = Ranker(schema, settings, towers, table_device, table_prefix, pieces)
    if table_device != "meta":
        _write_tables(ranker, seed)
    return ranker


def _tower_positions(schema: Schema, partition: Partition) -> tuple[list[list[int]], list[Piece]]:
    """Positions of each tower's features and slices in the list of all pieces, and this list."""
    pieces = partition.pieces([feature.name for feature in schema.categorical])
    names = [piece.name for piece in pieces]
    return [[names.index(name) for name in tower] for tower in partition.towers], pieces


@torch.no_grad()
def _write_tables(ranker: Ranker, seed: int) -> None:
    for config in ranker.embeddings.embedding_bag_configs():
        rows, dimension = config.num_embeddings, config.embedding_dim
        weight = ranker.embeddings.get_parameter(f"embedding_bags.{config.name}.weight")
        zeros = config.zero_columns if isinstance(config, RankerBagConfig) else 0
        weight.copy_(initial_rows(seed, config.name, rows, dimension, 0, rows, zeros))
