"""More ranks than a table has rows: six gloo ranks train what one trains, those without a row among
them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from recsys.models.factory import build_ranker
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.overlap import train_batches
from recsys.training.resume import Checkpoints, Position
from tests.support.batches import random_share, schema_of
from tests.support.engines import everything
from tests.support.launches import run_cases
from tests.support.sharded import MODEL, SEED, SIZES, TOLERANCE, train_settings

pytestmark = pytest.mark.slow

RANKS = 6
# In blocks of one row: two ranks hold none
FEATURES = {"currency": (1, "id"), "color": (4, "id"), "tags": (2, "list")}
SCHEMA = schema_of(FEATURES)
CASES: dict[str, dict[str, Any]] = {
    "row_wise": {"sharding": "row_wise"},
    "table_row_wise": {"sharding": "table_row_wise", "ranks_per_host": RANKS},
    "grid_shard": {"sharding": "grid_shard", "ranks_per_host": RANKS, "table_optimizer": "adagrad"},
    "in files": {"sharding": "row_wise", "table_memory": "file"},
    "fewer tables than ranks": {"sharding": "table_wise"},
}


def train(changes: dict[str, Any], folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """On every rank: weights after SIZES; what a fresh engine reads otherwise of full and
    differential checkpoints."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    settings = train_settings(
        world_size, **{"table_optimizer": "rowwise_adagrad", "table_file_dir": folder, **changes}
    )
    engines = [
        Engine(build_ranker(SCHEMA, MODEL, None, seed, "meta"), settings, seed)
        for seed in (SEED, SEED + 1)
    ]
    saving, loading = (Checkpoints(folder, "run", len(SIZES), full_every=2) for _ in engines)
    saving.restore(engines[0])
    batches = [
        random_share(FEATURES, SCHEMA.dense_width, n, i, rank, world_size)
        for i, n in enumerate(SIZES)
    ]
    for step, _ in enumerate(train_batches(engines[0], batches, engines[0].serving_loss)):
        saving.save(engines[0], Position(batches=step + 1))
    loading.restore(engines[1])
    trained, loaded = map(everything, engines)
    return engines[0].gather_state(), [
        name for name, value in trained.items() if not torch.equal(value, loaded[name])
    ]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[tuple[dict[str, Tensor], list[str]]]]:
    """Results by rank, by case."""
    return run_cases(
        train,
        {name: (RANKS, (case, tmp_path_factory.mktemp("six"))) for name, case in CASES.items()},
    )


@pytest.mark.parametrize("case", CASES)
def test_six_ranks_train_what_one_trains(
    case: str, trained: dict[str, list[tuple[dict[str, Tensor], list[str]]]], tmp_path: Path
) -> None:
    optimizer = {"table_optimizer": CASES[case].get("table_optimizer", "rowwise_adagrad")}
    expected, _ = run_on_ranks(train, (optimizer, tmp_path), 1, 1)[0]
    state, _ = trained[case][0]
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_their_checkpoints_hold_the_same_bits(
    case: str, trained: dict[str, list[tuple[dict[str, Tensor], list[str]]]]
) -> None:
    assert [different for _, different in trained[case]] == [[]] * RANKS
