"""Small exports of students: random weights, raw columns of every kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recsys.data.encoder import Encoder
from recsys.data.encoder_format import DenseEncoding, DomainEncoding, IdEncoding, RawColumn
from recsys.data.schema import CategoricalFeature, Schema
from recsys.data.standardise import Standard
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.serving.export import export_ranker

ROW = {"price": 2.5, "user": "u1", "ad": 7, "tags": ["a", "b"], "site": "f"}
MODEL = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8])
FEATURES = [
    CategoricalFeature("user", 50),
    CategoricalFeature("ad", 40),
    CategoricalFeature("tags", 20, "list"),
]
SCHEMA = Schema(
    "toy",
    ["price"],
    FEATURES,
    ["feed", "video"],
    [],
    0.1,
    {},
    serving_standard=Standard([0.5], [1.5], 5.0),
)
ENCODER = Encoder(
    [
        RawColumn("price", "number", optional=True),
        RawColumn("user", "text"),
        RawColumn("ad", "integer"),
        RawColumn("tags", "text", is_list=True, optional=True),
    ],
    [DenseEncoding("price", "price")],
    [
        IdEncoding("user", ["user"], 50),
        IdEncoding("ad", ["ad"], 40),
        IdEncoding("tags", ["tags"], 20, is_list=True),
    ],
    domains=["feed", "video"],
    domain=DomainEncoding("site", {"f": "feed", "v": "video"}),
    examples=[ROW, ROW | {"site": "v", "user": "u2"}],
)


def random_state(seed: int, schema: Schema = SCHEMA) -> dict[str, torch.Tensor]:
    """Weights that tell rows apart: a fresh ranker predicts the base rate whatever the row."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.normal(0, 0.5, value.shape, generator=generator)
        for name, value in build_ranker(schema, MODEL, None, 7).state_dict().items()
    }


def toy_export(
    folder: Path,
    seed: int = 3,
    domain: str | None = "feed",
    encoder: Encoder = ENCODER,
    learnt: Mapping[int, float] | None = None,
    **more: Any,
) -> None:
    """Export a student of random weights with raw columns as :data:`ROW` has them.

    Args:
        learnt: what is added to which row of each table; if any, the network's weights change, too.
    """
    state = random_state(seed)
    for row, value in (learnt or {}).items():
        for name, weights in state.items():
            if "embedding_bags" in name:
                weights[row] += value
            else:
                weights += value / 10
    export_ranker(state, SCHEMA, MODEL, encoder, folder, domain=domain, **more)
