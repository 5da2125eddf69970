"""What is exported predicts what was trained."""

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch

from recsys.config import InputError
from recsys.data.loader import batch_of
from recsys.data.schema import CategoricalFeature, Schema, Window
from recsys.models.factory import build_ranker
from recsys.models.partition_file import Partition
from recsys.models.settings import ModelSettings
from recsys.serving.export import export_ranker
from recsys.serving.predictor import Predictor

ROWS = 50
FEATURES = [
    CategoricalFeature("user", 30),
    CategoricalFeature("ad", 20),
    CategoricalFeature("history", 20, "list"),
]
SCHEMA = Schema(
    "toy", ["price"], FEATURES, ["all"], [Window("w0", 0, 10, ROWS, 0)], 0.1, {"user": "a"}
)
PARTITION = Partition("manual", [["user"], ["ad", "history"]], ["user", "ad", "history"])


@pytest.fixture
def frame() -> pl.DataFrame:
    generator = np.random.default_rng(2)
    lists = [generator.integers(20, size=generator.integers(4)).tolist() for _ in range(ROWS)]
    columns = {
        "price": [None, *generator.normal(size=ROWS - 1)],
        "user": generator.integers(30, size=ROWS),
        "ad": generator.integers(20, size=ROWS),
        "history": pl.Series(lists, dtype=pl.List(pl.Int64)),
    }
    return pl.DataFrame(columns)


@pytest.mark.parametrize(
    ("architecture", "towers"), [("dlrm", False), ("dcn", False), ("dlrm", True), ("dcn", True)]
)
def test_predictor_equals_the_ranker(
    tmp_path: Path, frame: pl.DataFrame, architecture: Literal["dlrm", "dcn"], towers: bool
) -> None:
    settings = ModelSettings(
        architecture=architecture,
        towers=towers,
        embedding_dimension=4,
        dense_layers=[8],
        over_layers=[8],
    )
    partition = PARTITION if towers else None
    ranker = build_ranker(SCHEMA, settings, partition, seed=7)
    export_ranker(ranker.state_dict(), SCHEMA, settings, tmp_path, partition)
    meta = {
        name: pl.lit(0)
        for name in ("example_id", "event_time", "label_time", "domain", "group", "label")
    }
    batch = batch_of(frame.with_columns(**meta), SCHEMA, np.ones(ROWS, np.float32), ROWS)
    with torch.no_grad():
        expected = torch.sigmoid(ranker(batch.dense, batch.sparse)["serving"].double()).numpy()
    predictor = Predictor.load(tmp_path)
    assert predictor.predict(frame.with_columns(domain=pl.lit(0))) == pytest.approx(
        expected, abs=1e-12
    )
    assert predictor.schema.windows == []


def test_export_is_reproducible(tmp_path: Path) -> None:
    settings = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
    for name in ("a", "b"):
        export_ranker(
            build_ranker(SCHEMA, settings, None, 7).state_dict(), SCHEMA, settings, tmp_path / name
        )
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_wrong_input_is_named(tmp_path: Path, frame: pl.DataFrame) -> None:
    settings = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
    export_ranker(build_ranker(SCHEMA, settings, None, 7).state_dict(), SCHEMA, settings, tmp_path)
    predictor = Predictor.load(tmp_path)
    with pytest.raises(InputError, match="'domain' is missing"):
        predictor.predict(frame)
    frame = frame.with_columns(domain=pl.lit(0))
    with pytest.raises(InputError, match="'ad' is missing"):
        predictor.predict(frame.drop("ad"))
    with pytest.raises(InputError, match=r"'user': ids must be in \[0, 30\)"):
        predictor.predict(frame.with_columns(user=pl.lit(30)))
    with pytest.raises(InputError, match="expected the export folder"):
        Predictor.load(tmp_path / "nowhere")
    assert predictor.predict(frame.head(0)).shape == (0,)
