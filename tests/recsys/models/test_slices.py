"""Column slices: names, cuts, the order of what passes through, and the models that are made of
them."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.config import InputError
from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.factory import build_ranker
from recsys.models.initial_tables import initial_rows
from recsys.models.partition_file import Partition
from recsys.models.ranker import Ranker
from recsys.models.settings import ModelSettings
from recsys.models.slices import Piece, cut_heavy, schema_order, whole_pieces
from recsys.towers.partitioner import partition_without_probe
from recsys.towers.probe import cut_features
from recsys.towers.settings import PartitionSettings

FEATURES = {"user": 50, "shop": 7, "city": 20}
SCHEMA = Schema(
    dataset="test",
    dense=["price"],
    categorical=[CategoricalFeature(name, rows) for name, rows in FEATURES.items()],
    domains=["feed"],
    windows=[],
    initial_base_rate=0.2,
    planted_groups={},
)
TOWERS = [
    ["user:2of2", "city:1of4", "city:4of4"],
    ["shop", "city:3of4"],
    ["city:2of4", "user:1of2"],
]
ROWS, SEED = 6, 2


def ranker_of(
    towers: list[list[str]] | None, kind: str | None = None, architecture: str = "dcn"
) -> Ranker:
    values = {
        "architecture": architecture,
        "towers": towers is not None,
        "tower_module": {"kind": kind},
    }
    settings = ModelSettings.model_validate(
        {**values, "embedding_dimension": 16, "over_layers": [8]}
    )
    partition = Partition("manual", towers, []) if towers else None
    return build_ranker(SCHEMA, settings, partition, SEED)


def batch() -> tuple[torch.Tensor, KeyedJaggedTensor]:
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.cat([torch.randint(0, rows, (ROWS,), generator=draw) for rows in FEATURES.values()])
    sparse = KeyedJaggedTensor(
        list(FEATURES), ids, lengths=torch.ones(len(FEATURES) * ROWS, dtype=torch.int64)
    )
    return torch.randn(ROWS, SCHEMA.dense_width, generator=draw), sparse


@pytest.mark.parametrize("piece", [Piece("user"), Piece("user", 2, 4), Piece("a:b", 1, 2)])
def test_a_name_says_which_piece_it_is(piece: Piece) -> None:
    assert Piece.parse(piece.name) == piece


def test_slices_divide_the_columns() -> None:
    pieces = [Piece("user", number, 4) for number in range(1, 5)]
    assert [column for piece in pieces for column in piece.columns(32)] == list(range(32))
    with pytest.raises(
        InputError, match=r"user:1of3: an embedding of 16 does not divide into 3 slices"
    ):
        Piece("user", 1, 3).columns(16)
    with pytest.raises(
        InputError, match="does not divide into 8 slices of a multiple of 4 columns"
    ):
        Piece("user", 1, 8).columns(16)


def test_what_is_heavier_than_the_limit_is_cut_into_as_few_slices_as_are_not() -> None:
    pieces, weights = cut_heavy(
        ["a", "b", "c"], np.array([10.0, 90.0, 31.0]), limit=30.0, dimension=48
    )
    assert Counter(piece.feature for piece in pieces) == {"a": 1, "b": 3, "c": 2}
    assert weights.tolist() == [10.0, 30.0, 30.0, 30.0, 15.5, 15.5]
    too_heavy, _ = cut_heavy(["a"], np.array([100.0]), limit=1.0, dimension=8)
    assert len(too_heavy) == 2  # of 4 columns, the narrowest


def test_slices_balance_towers_that_a_large_table_does_not() -> None:
    features, weights = ["large", *(f"small_{i}" for i in range(7))], np.array([100.0, *[4.0] * 7])
    loads = {}
    for limit in (None, 0.5):
        changes = {"balance": "bytes", "strategy": "greedy", "towers": 4, "slice_above": limit}
        settings = PartitionSettings.model_validate(changes)
        pieces, cut = cut_features(features, weights, settings)
        names = [piece.name for piece in pieces]
        partition = partition_without_probe(names, settings, cut)
        partition.check_features(features)
        assert partition.features == names
        loads[limit] = max(
            sum(cut[names.index(name)] for name in tower) for tower in partition.towers
        )
    assert loads == {None: 100.0, 0.5: 33.0}  # a quarter of everything is 32


@pytest.mark.parametrize(
    "changes", [{"balance": "count"}, {"balance": "bytes", "strategy": "manual"}]
)
def test_slices_need_weights(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="slice_above needs balance: bytes or lookup_cost"):
        PartitionSettings.model_validate({"slice_above": 1.0, **changes})


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        (
            [["user:1of2", "shop"], ["city"]],
            r"'user' is in the towers as user:1of2; give it whole, or 1ofn to nofn",
        ),
        ([["user:1of2", "user"], ["shop", "city"]], r"'user' is in the towers as user, user:1of2"),
        (
            [["user:1of2", "user:1of2"], ["shop", "city"]],
            r"'user:1of2' is in more than one tower",
        ),
        ([["user", "shop", "city", "hour:1of2"]], r"'hour' is not a categorical feature"),
    ],
)
def test_a_partition_holds_every_slice_once(towers: list[list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Partition("manual", towers, []).check_features(list(FEATURES))


def test_pieces_stand_in_the_order_of_the_features() -> None:
    pieces = Partition("manual", TOWERS, []).pieces(list(FEATURES))
    expected = [
        "user:1of2",
        "user:2of2",
        "shop",
        "city:1of4",
        "city:2of4",
        "city:3of4",
        "city:4of4",
    ]
    assert [piece.name for piece in pieces] == expected


def test_a_feature_may_be_called_like_a_slice() -> None:
    assert Partition("manual", [["a:1of2"], ["b"]], []).pieces(["a:1of2", "b"]) == whole_pieces(
        ["a:1of2", "b"]
    )


def test_what_passes_through_in_any_order_is_put_in_the_features_order() -> None:
    placed = [Piece("b", 2, 2), Piece("a"), Piece("b", 1, 2)]
    whole = {"a": torch.arange(8), "b": torch.arange(8, 16)}
    values = torch.cat([whole[p.feature][p.columns(8).start : p.columns(8).stop] for p in placed])
    order = schema_order(placed, ["a", "b"], 8)
    assert torch.equal(values.unflatten(0, (len(order), -1))[order].flatten(), torch.arange(16))
    assert schema_order(whole_pieces("ba"), ["a", "b"], 8) == [1, 0]


def test_a_slice_starts_with_its_columns_of_the_whole_table() -> None:
    whole = initial_rows(SEED, "table_user", 50, 16, 5, 40)
    assert torch.equal(initial_rows(SEED, "table_user:2of4", 50, 4, 5, 40), whole[:, 4:8])


@pytest.mark.parametrize("architecture", ["dcn", "dlrm", "wukong"])
def test_sliced_towers_that_pass_everything_through_are_the_model_without_towers(
    architecture: str,
) -> None:
    flat, sliced = (
        ranker_of(None, None, architecture),
        ranker_of(TOWERS, "pass_through", architecture),
    )
    outputs = [model(*batch())["serving"] for model in (flat, sliced)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    wanted = flat.embeddings.get_parameter("embedding_bags.table_user.weight").grad
    parts = [
        sliced.embeddings.get_parameter(f"embedding_bags.table_user:{n}of2.weight").grad
        for n in (1, 2)
    ]
    assert wanted is not None and wanted.any() and all(part is not None for part in parts)
    assert torch.equal(torch.cat([part for part in parts if part is not None], dim=1), wanted)


@pytest.mark.parametrize("kind", ["dot", "cross"])
def test_a_tower_sees_a_slice_as_a_feature_whose_other_columns_are_0(kind: str) -> None:
    ranker = ranker_of(TOWERS, kind, "dlrm" if kind == "dot" else "dcn")
    _, sparse = batch()
    pooled = ranker_of(None).embed(sparse)  # [B, 3, 16], the same initial tables
    user, city, zeros = pooled[:, 0], pooled[:, 2], torch.zeros(ROWS, 16)
    second, first, last = zeros.clone(), zeros.clone(), zeros.clone()
    second[:, 8:], first[:, :4], last[:, 12:] = user[:, 8:], city[:, :4], city[:, 12:]
    outputs = ranker.interaction.compress(ranker.embed(sparse))
    expected = ranker.interaction.towers[0](torch.stack([second, first, last], dim=1))
    assert torch.equal(outputs[0][:, :-1], expected)
    # The id's own weight, the first column, is in one slice of each feature: here in the city's
    assert torch.equal(outputs[0][:, -1], city[:, 0])
