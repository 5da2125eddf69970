"""A notebook in an empty folder: build, train and predict without files, launch or a group."""

import subprocess
import sys
from pathlib import Path

import pytest

from recsys.config import InputError
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.training.engine import Engine
from recsys.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = """
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.training.engine import Engine
from recsys.training.launch import run_on_ranks
from recsys.training.settings import TrainSettings

ROWS = 64
schema = Schema(
    "toy", ["price"], [CategoricalFeature("user", 20), CategoricalFeature("ad", 10)], ["shop"], [],
    0.5, {},
)
torch.manual_seed(1)
ids = torch.stack([torch.randint(20, (ROWS,)), torch.randint(10, (ROWS,))])
batch = Batch(
    dense=torch.randn(ROWS, schema.dense_width),
    sparse=KeyedJaggedTensor(
        ["user", "ad"], ids.flatten(), lengths=torch.ones(2 * ROWS, dtype=torch.int64)
    ),
    label=(ids[1] % 2).float(),
    weight=torch.ones(ROWS),
    domain=torch.zeros(ROWS, dtype=torch.int64),
    group=torch.zeros(ROWS, dtype=torch.int64),
    example_id=torch.arange(ROWS),
    event_time=torch.zeros(ROWS, dtype=torch.int64),
    score=torch.full((ROWS,), torch.nan),
    staleness_ms=torch.zeros(ROWS, dtype=torch.int64),
    global_rows=ROWS,
)
settings = TrainSettings(world_size=1, global_batch_size=ROWS)
engine = Engine(build_ranker(schema, ModelSettings(embedding_dimension=8)), settings, seed=1)
losses = [engine.train_step(batch, engine.serving_loss) for _ in range(30)]
assert losses[-1] < 0.8 * losses[0], losses
again = Engine(build_ranker(schema, ModelSettings(embedding_dimension=8)), settings, seed=1)
assert again.train_step(batch, again.serving_loss) == losses[0]
assert engine.predict(batch).shape == (ROWS,)
assert run_on_ranks(len, ("abc",), 1, 1) == [3]
"""


@pytest.mark.slow
def test_an_engine_works_in_an_empty_folder(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_several_ranks_without_a_group_are_told_to_launch() -> None:
    schema = Schema("toy", [], [CategoricalFeature("ad", 10)], ["shop"], [], 0.5, {})
    with pytest.raises(
        InputError,
        match=r"^TrainSettings: key 'world_size': 2 ranks.*recsys.training.launch.launch",
    ):
        Engine(build_ranker(schema, ModelSettings()), TrainSettings(world_size=2), seed=1)
