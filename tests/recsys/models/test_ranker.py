"""Rankers: shapes, seeds, output bias, initial tables."""

import math

import pytest
import torch

from recsys.config import InputError
from recsys.models.factory import build_ranker
from recsys.models.initial_tables import ROWS_PER_BLOCK, initial_rows
from recsys.models.settings import ModelSettings, TowerModuleSettings
from tests.support.three_features import PARTITION, SCHEMA, inputs


@pytest.mark.parametrize("architecture", ["dlrm", "dcn", "wukong"])
@pytest.mark.parametrize("towers", [False, True])
def test_output_shapes_and_seed(architecture: str, towers: bool) -> None:
    settings = ModelSettings.model_validate({"architecture": architecture, "towers": towers})
    ranker = build_ranker(SCHEMA, settings, PARTITION, seed=1)
    dense, sparse = inputs()
    representation = ranker.represent(dense, sparse)
    assert representation.shape == (2, ranker.representation_size)
    torch.testing.assert_close(ranker(dense, sparse)["serving"], ranker.head(representation))
    again = build_ranker(SCHEMA, settings, PARTITION, seed=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in ranker.state_dict().items())
    assert ranker.output.bias.item() == pytest.approx(math.log(0.1 / 0.9))


def test_meta_tables_leave_the_dense_part_the_same() -> None:
    whole, meta = (
        build_ranker(SCHEMA, ModelSettings(), None, 1, device) for device in ("cpu", "meta")
    )
    assert torch.equal(whole.over_arch[0].weight, meta.over_arch[0].weight)  # type: ignore[arg-type]
    assert meta.embeddings.embedding_bags["table_a"].weight.is_meta


def test_initial_rows_do_not_depend_on_the_shard() -> None:
    whole = initial_rows(0, "t", ROWS_PER_BLOCK + 10, 4, 0, ROWS_PER_BLOCK + 10)
    part = initial_rows(0, "t", ROWS_PER_BLOCK + 10, 4, ROWS_PER_BLOCK - 3, ROWS_PER_BLOCK + 5)
    assert torch.equal(whole[ROWS_PER_BLOCK - 3 : ROWS_PER_BLOCK + 5], part)
    assert torch.equal(initial_rows(0, "t", ROWS_PER_BLOCK + 10, 4, 3, 10), whole[3:10])
    behind = initial_rows(0, "t", ROWS_PER_BLOCK + 10, 4, ROWS_PER_BLOCK + 2, ROWS_PER_BLOCK + 9)
    assert torch.equal(whole[ROWS_PER_BLOCK + 2 : ROWS_PER_BLOCK + 9], behind)
    assert not torch.equal(
        part, initial_rows(1, "t", ROWS_PER_BLOCK + 10, 4, ROWS_PER_BLOCK - 3, ROWS_PER_BLOCK + 5)
    )


def test_towers_need_a_partition() -> None:
    with pytest.raises(InputError, match="partition"):
        build_ranker(SCHEMA, ModelSettings(towers=True), None, seed=0)


@pytest.mark.parametrize("architecture", ["dlrm", "dcn", "wukong"])
def test_towers_that_pass_through_are_the_model_without_towers(architecture: str) -> None:
    flat = ModelSettings.model_validate({"architecture": architecture})
    towers = flat.model_copy(
        update={"towers": True, "tower_module": TowerModuleSettings(kind="pass_through")}
    )
    dense, sparse = inputs()
    expected = build_ranker(SCHEMA, flat, None, seed=1)(dense, sparse)["serving"]
    assert torch.equal(
        build_ranker(SCHEMA, towers, PARTITION, seed=1)(dense, sparse)["serving"], expected
    )


@pytest.mark.parametrize("architecture", ["dlrm", "dcn", "wukong"])
@pytest.mark.parametrize("kind", ["dot", "cross", "pass_through"])
def test_tower_outputs_may_come_from_elsewhere(architecture: str, kind: str) -> None:
    """What a tower transform does: run the tower modules alone, then give their outputs to the
    interaction."""
    model = {"architecture": architecture, "towers": True, "tower_module": {"kind": kind}}
    settings = ModelSettings.model_validate(model | {"first_order": False})
    ranker = build_ranker(SCHEMA, settings, PARTITION, seed=1)
    dense, sparse = inputs()
    embeddings, arch = ranker.embed(sparse), ranker.interaction
    outputs = [
        tower(embeddings[:, members])
        for tower, members in zip(arch.towers, [[0, 2], [1]], strict=True)
    ]
    assert [output.shape[1] for output in outputs] == [tower.out_features for tower in arch.towers]
    hidden = ranker.dense_arch(dense)
    crossed, first_order = arch.interact(hidden, outputs)
    assert torch.equal(crossed, arch(hidden, embeddings)[0])
    assert first_order.shape == (2, 0)
