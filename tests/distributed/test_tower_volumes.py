"""The volume formulas of the cost model are the bytes that real gloo ranks send, flat and with the
transform."""

from typing import Any

import pytest
import torch
from torch import distributed
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.sharding.settings import CommunicationSettings
from recsys.towers.advice import Wire, ranker_work
from recsys.towers.engine import tower_engine
from recsys.towers.step_costs import Hosts, Volumes, volumes
from recsys.towers.traffic import AllToAll, AllToAllRecorder
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings

pytestmark = pytest.mark.slow

SEED, ROWS, RANKS = 3, 16, 4
EXAMPLES = 8  # a rank
NAMES = [f"feature_{index}" for index in range(8)]  # two a rank, so that every rank sends the mean
SCHEMA = Schema(
    dataset="test",
    dense=["price"],
    categorical=[CategoricalFeature(name, ROWS) for name in NAMES],
    domains=["feed"],
    windows=[],
    initial_base_rate=0.2,
    planted_groups={},
)
LAYOUTS = [(2, 2, 1), (4, 1, 1), (4, 1, 2)]  # hosts, ranks per host, hosts per tower
WIRES = [Wire("fp32", "fp32", "fp32"), Wire("fp16", "bf16", "fp32")]
SIZES_BYTES = 3 * 8  # to each rank before ids: of lengths, of values, of the batch


def batch_of(rank: int) -> Batch:
    draw = torch.Generator().manual_seed(rank)
    index = torch.arange(EXAMPLES)
    return Batch(
        dense=torch.randn(EXAMPLES, SCHEMA.dense_width, generator=draw),
        sparse=KeyedJaggedTensor(
            NAMES,
            torch.randint(0, ROWS, (len(NAMES) * EXAMPLES,), generator=draw),
            lengths=torch.ones(len(NAMES) * EXAMPLES, dtype=torch.int64),
        ),
        label=torch.randint(0, 2, (EXAMPLES,), generator=draw).float(),
        weight=torch.ones(EXAMPLES),
        domain=torch.zeros_like(index),
        group=index,
        example_id=index,
        event_time=index,
        score=torch.full((EXAMPLES,), float("nan")),
        staleness_ms=torch.zeros(EXAMPLES, dtype=torch.int64),
        global_rows=EXAMPLES * RANKS,
    )


def sent(
    layout: tuple[int, int, int], architecture: str, wire: Wire, towers: bool
) -> dict[str, Any]:
    """On every rank: the formulas' volumes and what one training step sent, across hosts and
    inside."""
    hosts, ranks_per_host, hosts_per_tower = layout
    rank, groups = distributed.get_rank(), hosts // hosts_per_tower
    partition = (
        Partition("manual", [NAMES[index::groups] for index in range(groups)], NAMES)
        if towers
        else None
    )
    model = {
        "architecture": architecture,
        "embedding_dimension": 16,
        "over_layers": [8],
        "tower_dimension": 8,
    }
    ranker = build_ranker(
        SCHEMA, ModelSettings.model_validate({**model, "towers": towers}), partition, SEED, "meta"
    )
    work = ranker_work(ranker, EXAMPLES, wire, ids_ahead=False)
    settings = TrainSettings(
        world_size=RANKS,
        ranks_per_host=ranks_per_host,
        hosts_per_tower=hosts_per_tower,
        tower_transform=towers,
        sharding="table_wise",
        communication=CommunicationSettings(forward=wire.forward, backward=wire.backward),
    )
    engine = tower_engine(ranker, settings, SEED, partition)
    with AllToAllRecorder() as recorder:
        engine.train_step(batch_of(rank), engine.serving_loss)
    return {
        "formulas": volumes(work, Hosts(*layout)),
        **_measured(recorder.found, rank, ranks_per_host),
    }


def _measured(found: list[AllToAll], rank: int, ranks_per_host: int) -> dict[str, int]:
    host = rank // ranks_per_host
    measured = {
        "ids_across": 0,
        "ids_inside": 0,
        "outputs_across": 0,
        "outputs_inside": 0,
        "messages": 0,
    }
    for one in found:
        kind = "outputs" if one.dtype.is_floating_point else "ids"
        for other, size in zip(one.ranks, one.sent, strict=True):
            across = other // ranks_per_host != host
            if other == rank:
                continue
            measured["messages"] += across
            if kind == "ids" and size == SIZES_BYTES:
                continue
            measured[f"{kind}_{'across' if across else 'inside'}"] += size
    return measured


def all_cases() -> list[dict[str, Any]]:
    cases = [(layout, a, wire) for layout in LAYOUTS for a in ("dlrm", "dcn") for wire in WIRES]
    return [sent(*case, towers) for case in cases for towers in (False, True)]


@pytest.fixture(scope="module")
def by_rank() -> list[list[dict[str, Any]]]:
    return run_on_ranks(all_cases, (), RANKS, 1)


@pytest.mark.parametrize("part", ["ids_across", "ids_inside", "outputs_across", "outputs_inside"])
def test_bytes_are_those_of_the_formulas(by_rank: list[list[dict[str, Any]]], part: str) -> None:
    for results in zip(*by_rank, strict=True):
        formulas: Volumes = results[0]["formulas"]
        assert sum(rank[part] for rank in results) == RANKS * getattr(formulas, part), results[0]


def test_messages_are_those_of_the_formulas(by_rank: list[list[dict[str, Any]]]) -> None:
    for results in zip(*by_rank, strict=True):
        assert [rank["messages"] for rank in results] == [results[0]["formulas"].messages] * RANKS
