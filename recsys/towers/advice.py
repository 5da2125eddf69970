"""Flat or towers on a cluster, how many and how narrow: the cost of every choice by
recsys/towers/step_costs.py."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from recsys.config import InputError, Settings
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import PASS_THROUGH, ModelSettings, TowerModuleSettings
from recsys.models.tower_modules import tower_width
from recsys.towers.partitioner import partition_without_probe
from recsys.towers.settings import PartitionSettings
from recsys.towers.step_costs import (
    Hosts,
    StepTime,
    TowerCluster,
    Volumes,
    Work,
    step_time,
    volumes,
)

WIRE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0}
FEWEST_COLUMNS = 4
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class AdvisedModel(Settings):
    """A model to advise on: equal tables, the layers above them, and a rank's batch size.

    Attributes:
        batch_size: examples per rank.
        features: number of features, one table each.
        ids_per_example: ids per example, over all features; null: one per feature.
        dense_features: number of dense features.
        model: the flat model.
        tower_module: the module that its towers would have.
        compressions: how many times narrower than an embedding a tower's vectors may be; the effect
            on quality is not predicted.
        forward: precision of embeddings or tower outputs between hosts.
        backward: precision of their gradients.
        gradients: precision of the dense gradients.
    """

    batch_size: PositiveInt = Field(description="examples per rank")
    features: PositiveInt
    ids_per_example: PositiveFloat | None = None
    dense_features: NonNegativeInt = 13
    model: ModelSettings
    tower_module: TowerModuleSettings = TowerModuleSettings()
    compressions: list[PositiveInt] = Field(default=[1, 2, 4, 8], min_length=1)
    forward: Precision = "fp16"
    backward: Precision = "fp16"
    gradients: Precision = "fp16"


@dataclass(frozen=True)
class Wire:
    """Number formats between ranks: embeddings or tower outputs, forward and backward, and dense
    gradients."""

    forward: Precision
    backward: Precision
    gradients: Precision


@dataclass(frozen=True)
class Choice:
    """A way to train: its name, its settings (``key=value``), and its cost."""

    name: str
    hosts: Hosts
    towers: int
    dimension: int
    settings: tuple[str, ...]
    work: Work
    moved: Volumes
    time: StepTime


def choices(model: AdvisedModel, cluster: TowerCluster, hosts: int) -> list[Choice]:
    """Flat, the transform alone, and towers in every number and compression; fastest first.

    Raises:
        InputError: a tower module does not suit the model.
    """
    layout = Hosts(hosts, cluster.ranks_per_host)
    priced = [
        _priced("flat", work_of(model, None), layout, cluster, 0, 0, "towers.module.enabled=false")
    ]
    passing = model.model_copy(update={"tower_module": TowerModuleSettings(kind=PASS_THROUGH)})
    for count in tower_counts(hosts, model.features):
        placed = Hosts(hosts, cluster.ranks_per_host, hosts // count)
        dimension = model.model.embedding_dimension
        alone = work_of(passing, count, dimension)
        name = f"transform alone, {count} groups of hosts"
        set_towers = (
            f"towers.partition.towers={count}",
            f"towers.transform.hosts_per_tower={placed.hosts_per_tower}",
        )
        passes = f"towers.module.kind={PASS_THROUGH}"
        priced.append(_priced(name, alone, placed, cluster, count, dimension, *set_towers, passes))
        for narrow in tower_dimensions(model):
            work = work_of(model, count, narrow)
            name = f"{count} towers, dimension {narrow}"
            width = f"towers.module.dimension={narrow}"
            priced.append(_priced(name, work, placed, cluster, count, narrow, *set_towers, width))
    return sorted(priced, key=lambda choice: choice.time.total)


def tower_counts(hosts: int, features: int) -> list[int]:
    """Possible numbers of towers, one per group of hosts: divisors of ``hosts`` from 2 on, at most
    the number of features."""
    return [count for count in range(2, hosts + 1) if hosts % count == 0 and count <= features]


def tower_dimensions(model: AdvisedModel) -> list[int]:
    """Widths of the towers' vectors allowed by ``compressions``."""
    whole = model.model.embedding_dimension
    found = [
        whole // ratio
        for ratio in model.compressions
        if whole % ratio == 0 and whole // ratio >= FEWEST_COLUMNS
    ]
    return sorted(set(found), reverse=True)


def work_of(model: AdvisedModel, towers: int | None, dimension: int = 0) -> Work:
    """A rank's work in a step with overlap, counted on a meta model; ``towers`` None: flat."""
    wire = Wire(model.forward, model.backward, model.gradients)
    work = ranker_work(
        advised_ranker(model, towers, dimension), model.batch_size, wire, ids_ahead=True
    )
    if model.ids_per_example is None:
        return work
    return replace(work, ids=model.ids_per_example, lists=model.features)


def ranker_work(ranker: Ranker, batch: int, wire: Wire, ids_ahead: bool) -> Work:
    """A rank's work in a step of ``ranker``, with one id per feature, and with the transform if it
    has towers."""
    cost = ranker_cost(ranker)
    own = sum(parameter.numel() for parameter in ranker.interaction.towers.parameters())
    widths = [tower_width(tower) for tower in ranker.interaction.towers]
    return Work(
        batch=batch,
        features=len(ranker.feature_names),
        dimension=ranker.embedding_dimension,
        ids=float(len(ranker.feature_names)),
        flops=cost.flops,
        shared_parameters=cost.dense_parameters - own,
        tower_parameters=own,
        output_width=None
        if ranker.interaction.members is None
        else ranker.interaction.width + ranker.own_weights * len(widths),
        forward_bytes=WIRE_BYTES[wire.forward],
        backward_bytes=WIRE_BYTES[wire.backward],
        gradient_bytes=WIRE_BYTES[wire.gradients],
        imbalance=max(widths) * len(widths) / sum(widths) if widths else 1.0,
        ids_ahead=ids_ahead,
    )


def advised_ranker(model: AdvisedModel, towers: int | None, dimension: int = 0) -> Ranker:
    """The ranker with meta tables and its features assigned to ``towers`` towers by stride."""
    names = [f"feature_{index}" for index in range(model.features)]
    schema = Schema(
        dataset="advice",
        dense=[
            f"dense_{index}" for index in range(model.dense_features // 2)
        ],  # a value and a missing indicator each
        categorical=[CategoricalFeature(name, 1) for name in names],
        domains=["all"],
        windows=[],
        initial_base_rate=0.5,
        planted_groups={},
    )
    settings, partition = model.model, None
    if towers is not None:
        changes = {"towers": True, "tower_module": model.tower_module, "tower_dimension": dimension}
        settings = settings.model_copy(update=changes)
        partition = _by_stride(names, towers)
    with torch.device("meta"):
        return build_ranker(schema, settings, partition, seed=0, table_device="meta")


def check_hosts(hosts: int, features: int, path: Path) -> None:
    """Refuse numbers of hosts on which no tower can be placed.

    Raises:
        InputError: there is one host, or no number of towers both divides the hosts and is at most
            the number of features.
    """
    if hosts == 1:
        raise InputError("--hosts 1: nothing crosses hosts, so towers move nothing; give 2 or more")
    if not tower_counts(hosts, features):
        raise InputError(
            f"--hosts {hosts}: no number of towers from 2 to {features} (the features of {path}) "
            f"divides it; "
            f"use a multiple of 2"
        )


def _by_stride(names: list[str], towers: int) -> Partition:
    return partition_without_probe(names, PartitionSettings(towers=towers, strategy="stride"))


def _priced(
    name: str,
    work: Work,
    hosts: Hosts,
    cluster: TowerCluster,
    towers: int,
    dimension: int,
    *settings: str,
) -> Choice:
    moved, time = volumes(work, hosts), step_time(work, hosts, cluster)
    return Choice(name, hosts, towers, dimension, settings, work, moved, time)
