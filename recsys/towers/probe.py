"""Learn a partition: train a small probe on the first windows, then compare its features' embeddings."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn.functional import normalize

from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import Schema
from recsys.models.factory import build_ranker
from recsys.models.ranker import Ranker
from recsys.progress import RowProgress
from recsys.towers.figures import draw_affinity, draw_map
from recsys.towers.partition_file import PARTITION_FILE, Partition
from recsys.towers.partitioner import DECIMALS, partition_by_affinity, partition_without_probe
from recsys.towers.settings import PartitionSettings
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings


def learn_partition(
    windows_dir: Path, settings: PartitionSettings, train: TrainSettings, output_dir: Path
) -> Partition:
    """Write partition.json, and figures/{affinity,map}.png where a probe was trained, in ``output_dir``.

    Raises:
        InputError: the windows are missing or the settings do not fit their features.
    """
    features = [feature.name for feature in Schema.load(windows_dir).categorical]
    output_dir.mkdir(parents=True, exist_ok=True)
    if settings.strategy not in ("coherent", "diverse"):
        partition = partition_without_probe(features, settings)
    else:
        arguments = (windows_dir, settings, train)
        affinity = launch(train_probe, arguments, train)[0]
        partition = partition_by_affinity(features, affinity, settings)
        figures = output_dir / "figures"
        figures.mkdir(exist_ok=True)
        draw_affinity(partition, figures / "affinity.png")
        draw_map(partition, figures / "map.png")
    partition.save(output_dir / PARTITION_FILE)
    return partition


def train_probe(windows_dir: Path, settings: PartitionSettings, train: TrainSettings) -> NDArray[np.float64]:
    """On every rank: train the probe once over its windows; the affinity of its features, [F, F] in [0, 1]."""
    reader = WindowReader(windows_dir)
    windows = reader.windows[: settings.probe_windows]
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    model = build_ranker(reader.schema, settings.probe_model, None, settings.seed, "meta")
    engine = Engine(model, train, settings.seed)
    with RowProgress("probe", sum(window.rows for window in windows), enabled=rank == 0) as progress:
        for window in windows:
            for batch in reader.label_batches(window, train.global_batch_size, rank, world_size):
                engine.train_step(batch, engine.serving_loss)
                progress.advance(batch.global_rows)
    batches = reader.event_batches(windows[-1], train.global_batch_size, rank, world_size)
    chosen = [batch for _, batch in zip(range(settings.affinity_batches), batches, strict=False)]
    return measure_affinity(engine, chosen, signed=settings.affinity_mean == "signed")


def measure_affinity(engine: Engine, batches: list[Batch], signed: bool) -> NDArray[np.float64]:
    """Mean cosine of each pair of features' embeddings over the batches of all ranks: [F, F] in [0, 1].

    The mean of absolute values, or, ``signed``, the absolute value of the mean.
    """
    ranker = engine.module
    assert isinstance(ranker, Ranker)
    features = len(ranker.feature_names)
    total = torch.zeros(features, features, dtype=torch.float64)
    rows = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        cosines = _cosines(ranker, batch.to(engine.device)).cpu()
        weight = batch.weight.double()
        total += torch.einsum("b,bij->ij", weight, (cosines if signed else cosines.abs()).double())
        rows += weight.sum()
    distributed.all_reduce(total)
    distributed.all_reduce(rows)
    affinity = (total / rows).abs().clamp(max=1.0).fill_diagonal_(1.0)
    return np.round(affinity.numpy().astype(np.float64), DECIMALS)


@torch.no_grad()
def _cosines(ranker: Ranker, batch: Batch) -> Tensor:
    """Cosines of all pairs of features' embeddings of each example: [B, F, F]."""
    unit = normalize(ranker.embed(batch.sparse), dim=2)  # [B, F, N]; an empty list stays 0
    return torch.bmm(unit, unit.transpose(1, 2))
