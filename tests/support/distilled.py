"""A batch with labels and a teacher's scores, of one task and of two."""

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.data.loader import Batch
from recsys.data.schema import CategoricalFeature, Schema
from recsys.distill.adapter import StudentAdapter
from recsys.models.settings import ModelSettings

ROWS = 16
SCHEMA = Schema(
    "toy",
    ["price"],
    [CategoricalFeature("user", 20), CategoricalFeature("ad", 10)],
    ["all"],
    [],
    0.1,
    {},
)
MODEL = ModelSettings(embedding_dimension=4, dense_layers=[8], over_layers=[8, 6])
SCHEMA_OF_TWO = replace(SCHEMA, tasks=["click", "conversion"], further_base_rates=[0.02])


def batch(score: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.cat(
        [
            torch.randint(20, (ROWS,), generator=generator),
            torch.randint(10, (ROWS,), generator=generator),
        ]
    )
    rows = torch.arange(ROWS)
    return Batch(
        dense=torch.randn(ROWS, SCHEMA.dense_width, generator=generator),
        sparse=KeyedJaggedTensor(
            keys=["user", "ad"], values=ids, lengths=torch.ones(2 * ROWS, dtype=torch.int64)
        ),
        label=(torch.rand(ROWS, generator=generator) < 0.3).float(),
        weight=torch.ones(ROWS),
        domain=torch.zeros(ROWS, dtype=torch.int64),
        group=rows,
        example_id=rows,
        event_time=rows,
        score=torch.randn(ROWS, generator=generator) if score is None else score,
        staleness_ms=torch.zeros(ROWS, dtype=torch.int64),
        global_rows=ROWS,
    )


def batch_of_two(missing: Tensor) -> Batch:
    """A batch in which the rows of ``missing`` [B] have no conversion."""
    draw = torch.Generator().manual_seed(2)
    label = (torch.rand(ROWS, generator=draw) < 0.4).float()
    score = torch.randn(ROWS, generator=draw)
    further = {"conversion": torch.where(missing, torch.nan, label)}
    return replace(batch(), further_labels=further, further_scores={"conversion": score})


def weights_of(adapter: StudentAdapter, task: str) -> list[Tensor]:
    state = adapter.state()["side"][task]
    optimizer = [value for states in state["optimizer"].values() for value in states.values()]
    return copy.deepcopy([*state["network"].values(), *optimizer])
