"""Learn a partition: train a small probe on the first windows, then compare the embeddings of its
features."""

import sys
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn.functional import normalize

from recsys.config import InputError
from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import Schema
from recsys.evaluation.metrics import entropy
from recsys.models.factorization import FactorizationMachine
from recsys.models.factory import build_ranker
from recsys.models.partition_file import PARTITION_FILE, Partition
from recsys.models.ranker import Ranker
from recsys.models.slices import Piece, cut_heavy, whole_pieces
from recsys.progress import RowProgress
from recsys.towers.partition_figures import draw_affinity, draw_map
from recsys.towers.partitioner import DECIMALS, partition_by_affinity, partition_without_probe
from recsys.towers.settings import PROBED, PartitionSettings
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.training.overlap import load_ahead, train_batches
from recsys.training.settings import TrainSettings
from recsys.units import FLOAT_BYTES


def learn_partition(
    windows_dir: Path, settings: PartitionSettings, train: TrainSettings, output_dir: Path
) -> Partition:
    """Write partition.json and, if a probe was trained, figures/{affinity,map}.png to
    ``output_dir``.

    Raises:
        InputError: the windows are missing, or the settings do not suit their features.
    """
    reader = WindowReader(windows_dir)
    features = [feature.name for feature in reader.schema.categorical]
    output_dir.mkdir(parents=True, exist_ok=True)
    pieces, weights = cut_features(features, feature_weights(reader, settings, train), settings)
    of_piece = [features.index(piece.feature) for piece in pieces]
    features = [piece.name for piece in pieces]
    if len(features) < settings.towers and settings.strategy != "manual":
        print(
            f"partition: {len(features)} towers, one per categorical feature; partition.towers "
            f"asks for {settings.towers}",
            file=sys.stderr,
        )
        settings = settings.model_copy(update={"towers": len(features)})
    if settings.strategy not in PROBED or len(features) == 1:
        partition = partition_without_probe(features, settings, weights)
    else:
        arguments = (windows_dir, settings, train)
        affinity = launch(train_probe, arguments, train)[0][np.ix_(of_piece, of_piece)]
        if settings.strategy == "both":
            partition = _better(windows_dir, features, affinity, settings, train, weights)
        else:
            partition = partition_by_affinity(features, affinity, settings, weights)
        figures = output_dir / "figures"
        figures.mkdir(exist_ok=True)
        draw_affinity(partition, figures / "affinity.png")
        draw_map(partition, figures / "map.png")
    partition.save(output_dir / PARTITION_FILE)
    return partition


def cut_features(
    features: list[str], weights: NDArray[np.float64], settings: PartitionSettings
) -> tuple[list[Piece], NDArray[np.float64]]:
    """The P features, or slices of them, to be partitioned, and their weights [P]; see
    ``slice_above``."""
    if settings.slice_above is None:
        return whole_pieces(features), weights
    limit = settings.slice_above * float(weights.sum()) / settings.towers
    return cut_heavy(features, weights, limit, settings.probe_model.embedding_dimension)


def feature_weights(
    reader: WindowReader, settings: PartitionSettings, train: TrainSettings
) -> NDArray[np.float64]:
    """The weight of each feature for ``settings.balance``, [F] > 0.

    ``bytes`` is the table's rows x width x 4; ``lookup_cost`` is the float32 bytes read per
    example, over the first ``affinity_batches`` batches of the first window.
    """
    row_bytes = settings.probe_model.embedding_dimension * FLOAT_BYTES
    if settings.balance == "count":
        return np.ones(len(reader.schema.categorical))
    if settings.balance == "bytes":
        return np.array(
            [float(feature.num_embeddings * row_bytes) for feature in reader.schema.categorical]
        )
    batches = reader.event_batches(reader.windows[0], train.global_batch_size, rank=0, world_size=1)
    ids, rows = np.zeros(len(reader.schema.categorical)), 0
    for batch in islice(batches, settings.affinity_batches):
        ids += np.array([batch.sparse[name].lengths().sum().item() for name in batch.sparse.keys()])  # noqa: SIM118
        rows += batch.global_rows
    return np.maximum(ids, 1.0) * row_bytes / max(rows, 1)


def _better(
    windows_dir: Path,
    features: list[str],
    affinity: NDArray[np.float64],
    settings: PartitionSettings,
    train: TrainSettings,
    weights: NDArray[np.float64],
) -> Partition:
    """The coherent or the diverse partition, whichever has the lower :func:`proxy_ne`; coherent in
    a tie."""
    choices = [
        partition_by_affinity(
            features, affinity, settings.model_copy(update={"strategy": name}), weights
        )
        for name in ("coherent", "diverse")
    ]
    measured = [
        launch(proxy_ne, (windows_dir, settings, train, choice), train)[0] for choice in choices
    ]
    return choices[int(np.argmin(measured))]


def proxy_ne(
    windows_dir: Path, settings: PartitionSettings, train: TrainSettings, partition: Partition
) -> float:
    """The NE of ``probe_model`` with towers over the probe's windows from the second on; runs on
    every rank.

    Each window is predicted before the probe trains on it. The windows that judge the teacher come
    later (``first_evaluation_window`` is at least ``probe_windows``), so the choice does not use
    them.

    Raises:
        InputError: there is only one window, so no trained model predicts anything.
    """
    reader = WindowReader(windows_dir)
    windows = reader.windows[: settings.probe_windows]
    if len(windows) == 1:
        raise InputError(
            f"{settings.where('strategy')}: both compares on the second window on; give "
            "probe_windows 2"
        )
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    chosen = settings.probe_model.model_copy(update={"towers": True})
    engine = Engine(
        build_ranker(reader.schema, chosen, partition, settings.seed, "meta"), train, settings.seed
    )
    sums = torch.zeros(3, dtype=torch.float64)  # loss, clicks, rows
    for window in windows:
        if window is not windows[0]:
            for batch in reader.event_batches(window, train.global_batch_size, rank, world_size):
                loss = engine.serving_loss(engine.outputs(batch), batch)
                parts = (batch.weight * loss, batch.weight * batch.label, batch.weight)
                sums += torch.stack([part.double().sum() for part in parts])
        for batch in reader.label_batches(window, train.global_batch_size, rank, world_size):
            engine.train_step(batch, engine.serving_loss)
    distributed.all_reduce(sums)
    loss, clicks, rows = sums.tolist()
    return loss / rows / entropy(clicks / rows)


def train_probe(
    windows_dir: Path, settings: PartitionSettings, train: TrainSettings
) -> NDArray[np.float64]:
    """Train the probe on its windows and return its features' affinity, [F, F] in [0, 1]; runs on
    every rank."""
    reader = WindowReader(windows_dir)
    windows = reader.windows[: settings.probe_windows]
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    engine = Engine(_probe(reader.schema, settings), train, settings.seed)
    rows = settings.probe_epochs * sum(window.rows for window in windows)
    with RowProgress("probe", rows, enabled=rank == 0) as progress:
        for window in settings.probe_epochs * windows:
            batches = reader.label_batches(window, train.global_batch_size, rank, world_size)
            with (
                closing(load_ahead(engine, batches)) as ahead,
                closing(train_batches(engine, ahead, engine.serving_loss)) as steps,
            ):
                for batch, _ in steps:
                    progress.advance(batch.global_rows)
    batches = reader.event_batches(windows[-1], train.global_batch_size, rank, world_size)
    chosen = [engine.on_device(batch) for batch in islice(batches, settings.affinity_batches)]
    return measure_affinity(engine, chosen, settings)


def _probe(schema: Schema, settings: PartitionSettings) -> Ranker | FactorizationMachine:
    if settings.probe == "factorization":
        return FactorizationMachine(schema, settings.probe_model.embedding_dimension, "meta")
    return build_ranker(schema, settings.probe_model, None, settings.seed, "meta")


def measure_affinity(
    engine: Engine, batches: list[Batch], settings: PartitionSettings
) -> NDArray[np.float64]:
    """The affinity of each pair of features over all ranks' batches: [F, F] in [0, 1].

    Depending on ``affinity_mean``, it is the mean absolute cosine of their embeddings in an
    example, the root mean square cosine, or the absolute value of the mean cosine.
    """
    probe = engine.module
    assert isinstance(probe, Ranker | FactorizationMachine)
    mean = (
        _mean_embeddings(probe, batches)
        if settings.affinity_centred
        else torch.zeros((), device=engine.device)
    )
    of_each: Callable[[Tensor], Tensor] = {
        "absolute": Tensor.abs,
        "squared": Tensor.square,
        "signed": Tensor.double,
    }[settings.affinity_mean]
    features = len(probe.feature_names)
    total = torch.zeros(features, features, dtype=torch.float64)
    rows = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        weight = batch.weight.double().cpu()
        total += torch.einsum(
            "b,bij->ij", weight, of_each(_cosines(probe, batch, mean)).double().cpu()
        )
        rows += weight.sum()
    distributed.all_reduce(total)
    distributed.all_reduce(rows)
    affinity = (total / rows).abs()
    if settings.affinity_mean == "squared":
        affinity = affinity.sqrt()
    return np.round(
        affinity.clamp(max=1.0).fill_diagonal_(1.0).numpy().astype(np.float64), DECIMALS
    )


@torch.no_grad()
def _mean_embeddings(probe: Ranker | FactorizationMachine, batches: list[Batch]) -> Tensor:
    """The mean embedding of each feature over all ranks' batches: [F, N] float32."""
    sums = [
        torch.einsum("b,bfn->fn", batch.weight, probe.embed(batch.sparse)).double()
        for batch in batches
    ]
    rows = sum(
        (batch.weight.double().sum() for batch in batches), torch.zeros((), dtype=torch.float64)
    )
    total = torch.stack(sums).sum(dim=0)
    distributed.all_reduce(total)
    distributed.all_reduce(rows)
    return (total / rows).float()


@torch.no_grad()
def _cosines(probe: Ranker | FactorizationMachine, batch: Batch, mean: Tensor) -> Tensor:
    """Cosines of all pairs of features' embeddings in each example, after subtracting ``mean``: [B,
    F, F]."""
    # [B, F, N]; without a mean, an empty list stays 0
    unit = normalize(probe.embed(batch.sparse) - mean, dim=2)
    return torch.bmm(unit, unit.transpose(1, 2))
