"""Sequences: positions, attention that padding cannot reach, cost, export, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import InputError
from recsys.data.encoder import encoder_of_ids
from recsys.data.loader import META_COLUMNS, batch_of
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.ranker import Ranker
from recsys.models.sequences import SequencePooling, with_positions
from recsys.models.settings import ModelSettings, SequenceSettings
from recsys.serving.export import export_ranker
from recsys.serving.predictor import Predictor

DIMENSION, LENGTH, ROWS = 8, 5, 30
SCHEMA = Schema(
    dataset="test",
    dense=["price"],
    categorical=[
        CategoricalFeature("ad", 20),
        CategoricalFeature("user", 9),
        CategoricalFeature("items", 20, "list"),
    ],
    domains=["feed"],
    windows=[],
    initial_base_rate=0.1,
    planted_groups={},
)
KINDS: list[dict[str, Any]] = [
    {"attention": "multi_head", "heads": 1},
    {"attention": "multi_head", "heads": 2, "shares_table": True},
    {"attention": "activation_unit", "widths": [6]},
    {"attention": "activation_unit", "widths": [], "shares_table": True},
]


def model_settings(**sequence: Any) -> ModelSettings:
    sequences = {"items": {"target": "ad", "length": LENGTH} | sequence}
    shape = {"embedding_dimension": DIMENSION, "dense_layers": [4], "over_layers": [4]}
    return ModelSettings.model_validate(shape | {"sequences": sequences})


def inputs(lists: list[list[int]]) -> tuple[Tensor, KeyedJaggedTensor]:
    """The same dense input, ad and user for each of ``lists``."""
    count = len(lists)
    ids = torch.tensor([3] * count + [5] * count + [one for ids in lists for one in ids])
    lengths = torch.tensor([1] * (2 * count) + [len(one) for one in lists])
    return torch.ones(count, SCHEMA.dense_width), KeyedJaggedTensor(
        ["ad", "user", "items"], ids, lengths=lengths
    )


@settings(max_examples=100, derandomize=True)
@given(
    lists=st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=5),
    length=st.integers(1, 4),
)
def test_positions_hold_the_newest_ids_newest_first(lists: list[list[int]], length: int) -> None:
    count = len(lists)
    ids = torch.tensor([*range(count), *(one for ids in lists for one in ids)], dtype=torch.int64)
    lengths = torch.tensor([1] * count + [len(one) for one in lists], dtype=torch.int64)
    sparse = with_positions(
        KeyedJaggedTensor(["user", "items"], ids, lengths=lengths), {"items": length}
    )
    assert sparse.keys() == ["user", *(f"items[{position}]" for position in range(length))]
    assert sparse["user"].values().tolist() == list(range(count))
    for position in range(length):
        wanted = [list(reversed(one))[position : position + 1] for one in lists]
        assert sparse[f"items[{position}]"].lengths().tolist() == [len(one) for one in wanted]
        assert sparse[f"items[{position}]"].values().tolist() == [
            one for ids in wanted for one in ids
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_behind_the_mask_never_matters(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    pooling = SequencePooling(model_settings(**kind).sequences, DIMENSION)
    lists = [list(range(count)) for count in range(LENGTH + 1)]
    columns = torch.randn(LENGTH + 1, 2 + LENGTH, DIMENSION)
    _, sparse = inputs(lists)
    pooled = pooling(columns, ["ad", "user", "items"], sparse)
    assert pooled.shape == (LENGTH + 1, 3, DIMENSION)
    assert torch.equal(pooled[:, :2], columns[:, :2])
    for row, known in enumerate(lists):
        other = columns.clone()
        other[row, 2 + len(known) :] = 1e3 * torch.randn(LENGTH - len(known), DIMENSION)
        assert torch.equal(pooling(other, ["ad", "user", "items"], sparse), pooled)
        other[row, 2 + len(known) :] = columns[row, 2 + len(known) :].flip(0)
        assert torch.equal(pooling(other, ["ad", "user", "items"], sparse), pooled)
        if known:
            other[row, 2] += 1.0
            changed = pooling(other, ["ad", "user", "items"], sparse)
            assert not torch.allclose(changed[row, 2], pooled[row, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_room_for_more_ids_changes_nothing(kind: dict[str, Any]) -> None:
    lists = [[], [4], [1, 2, 3], [0, 1, 2, 3, 4]]
    ranker = build_ranker(SCHEMA, model_settings(**kind), None, seed=1)
    roomy = build_ranker(SCHEMA, model_settings(**{**kind, "length": 3 * LENGTH}), None, seed=1)
    roomy.load_state_dict(ranker.state_dict())
    torch.testing.assert_close(
        roomy(*inputs(lists))["serving"], ranker(*inputs(lists))["serving"], rtol=0, atol=1e-6
    )
    newest = [ids[-LENGTH:] for ids in [[7, 8, *range(LENGTH)], [*range(LENGTH)]]]
    assert torch.equal(*ranker(*inputs(newest))["serving"])  # older ones than L are not seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_decides_what_counts(kind: dict[str, Any]) -> None:
    """Mean pooling gives each feature's vector whatever the others are; attention does not."""
    ranker = build_ranker(SCHEMA, model_settings(**kind), None, seed=1)
    mean = build_ranker(SCHEMA, model_settings().model_copy(update={"sequences": {}}), None, seed=1)
    _, sparse = inputs([[1, 2, 9]])
    other = KeyedJaggedTensor(
        sparse.keys(), torch.tensor([8, 5, 1, 2, 9]), lengths=sparse.lengths()
    )
    assert not torch.equal(ranker.embed(sparse)[:, 2], ranker.embed(other)[:, 2])
    assert torch.equal(mean.embed(sparse)[:, 2], mean.embed(other)[:, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_attention_computes_in_bfloat16_where_asked(kind: dict[str, Any]) -> None:
    ranker = build_ranker(SCHEMA, model_settings(**kind), None, seed=1)
    _, sparse = inputs([[], [1, 2, 9]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = ranker.embed(sparse)
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, ranker.embed(sparse))
    torch.testing.assert_close(coarse, ranker.embed(sparse), rtol=0.02, atol=0.01)


def test_the_dense_part_and_the_tables_start_as_without_sequences() -> None:
    plain = build_ranker(
        SCHEMA, model_settings().model_copy(update={"sequences": {}}), None, seed=1
    ).state_dict()
    ranker = build_ranker(SCHEMA, model_settings(), None, seed=1).state_dict()
    assert all(torch.equal(ranker[name], value) for name, value in plain.items())
    assert {name.split(".")[0] for name in ranker.keys() - plain.keys()} == {"sequences"}


def test_flops_and_parameters_by_hand() -> None:
    plain = model_settings().model_copy(update={"sequences": {}})
    base = ranker_cost(build_ranker(SCHEMA, plain, None, seed=0, table_device="meta"))
    n, length = DIMENSION, LENGTH
    unit = ranker_cost(
        build_ranker(
            SCHEMA,
            model_settings(attention="activation_unit", widths=[6]),
            None,
            0,
            table_device="meta",
        )
    )
    # Two layers of the unit, and the sum
    assert unit.flops - base.flops == 6 * length * (4 * n * 6 + 6 + n)
    assert unit.dense_parameters - base.dense_parameters == (4 * n * 6 + 6) + (6 + 1)
    heads = ranker_cost(
        build_ranker(
            SCHEMA, model_settings(heads=2, shares_table=True), None, seed=0, table_device="meta"
        )
    )
    # Query and output projections, keys and values, scores, sum; beside the sequence a key and
    # value of zeros.
    assert heads.flops - base.flops == 6 * (2 * n * n + 2 * length * n * n + 2 * (length + 1) * n)
    assert heads.dense_parameters - base.dense_parameters == 4 * (n * n + n)
    assert base.table_parameters - heads.table_parameters == 20 * n  # of the shared table


@pytest.mark.parametrize("kind", KINDS)
def test_the_predictor_equals_the_ranker(tmp_path: Path, kind: dict[str, Any]) -> None:
    draw = np.random.default_rng(2)
    lists = [draw.integers(20, size=count % (LENGTH + 3)).tolist() for count in range(ROWS)]
    frame = pl.DataFrame(
        {
            "price": draw.normal(size=ROWS),
            "ad": draw.integers(20, size=ROWS),
            "user": draw.integers(9, size=ROWS),
            "items": pl.Series(lists, dtype=pl.List(pl.Int64)),
            "domain": 0,
        }
    )
    chosen = model_settings(**kind)
    ranker = build_ranker(SCHEMA, chosen, None, seed=7)
    encoder = encoder_of_ids(SCHEMA.dense, SCHEMA.categorical, SCHEMA.domains, given=True)
    export_ranker(ranker.state_dict(), SCHEMA, chosen, encoder, tmp_path)
    filled = frame.with_columns(
        pl.lit(0).alias(name) for name in [*META_COLUMNS, "label"] if name != "domain"
    )
    batch = batch_of(filled, SCHEMA, np.ones(ROWS, np.float32), ROWS)
    with torch.no_grad():
        expected = torch.sigmoid(ranker(batch.dense, batch.sparse)["serving"].double()).numpy()
    assert Predictor.load(tmp_path).predict_encoded(frame) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (
            {"itmes": {"target": "ad"}},
            "key 'sequences.itmes': no list feature 'itmes'; the data has items",
        ),
        (
            {"ad": {"target": "user"}},
            "key 'sequences.ad': no list feature 'ad'; the data has items",
        ),
        (
            {"items": {"target": "add"}},
            "target 'add' is not a feature with one id per example; there are: ad, user",
        ),
        ({"items": {"target": "items"}}, "target 'items' is not a feature with one id per example"),
        ({"items": {"target": "ad", "heads": 3}}, "heads 3 must divide embedding_dimension 8"),
        (
            {"items": {"target": "user", "shares_table": True}},
            "needs as many rows as user has, 9, not 20",
        ),
    ],
)
def test_mistakes_are_one_line(sequences: dict[str, Any], message: str) -> None:
    chosen = model_settings().model_copy(
        update={
            "sequences": {
                name: SequenceSettings.model_validate(one) for name, one in sequences.items()
            }
        }
    )
    with pytest.raises(InputError, match=message) as caught:
        build_ranker(SCHEMA, chosen, None, seed=0)
    assert "\n" not in str(caught.value)


def test_a_feature_with_the_name_of_a_position_is_refused() -> None:
    features = [*SCHEMA.categorical, CategoricalFeature("items[1]", 5)]
    schema = Schema("test", ["price"], features, ["feed"], [], 0.1, {})
    with pytest.raises(
        InputError, match=r"the data has a feature 'items\[1\]', the name of a position; rename it"
    ):
        Ranker(schema, model_settings(), None, "meta")
