"""A ranker of one task draws what it always drew; further tasks leave the rest of it as it is."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from recsys.data.schema import CategoricalFeature, Schema
from recsys.models.cost import ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.layers import perceptron
from recsys.models.ranker import ARCHITECTURES
from recsys.models.settings import ModelSettings
from recsys.models.slices import whole_pieces

SEED = 5
FEATURES = [CategoricalFeature("user", 20), CategoricalFeature("ad", 10)]
SCHEMA = Schema("toy", ["price"], FEATURES, ["all"], [], 0.1, {})
OF_THREE = replace(SCHEMA, tasks=["click", "cart", "conversion"], further_base_rates=[0.05, 0.02])


@pytest.mark.parametrize("architecture", ["dlrm", "dcn", "wukong"])
@pytest.mark.parametrize("schema", [SCHEMA, OF_THREE])
def test_shared_part_and_main_head_are_those_of_a_ranker_without_tasks(
    schema: Schema, architecture: Literal["dlrm", "dcn", "wukong"]
) -> None:
    """Drawn here layer by layer, as before there were tasks."""
    settings = ModelSettings(
        architecture=architecture,
        embedding_dimension=4,
        dense_layers=[8],
        over_layers=[8, 6],
        first_order=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        dense_arch = perceptron(SCHEMA.dense_width, settings.dense_layers)
        interaction = ARCHITECTURES[architecture](
            8, None, whole_pieces([feature.name for feature in FEATURES]), settings, 0
        )
        over_arch = perceptron(interaction.out_features, settings.over_layers)
        output = nn.Linear(6, 1)
    expected = {
        "dense_arch": dense_arch,
        "interaction": interaction,
        "over_arch": over_arch,
        "output": output,
    }
    ranker = build_ranker(schema, settings, None, SEED)
    for name, module in expected.items():
        own = ranker.get_submodule(name).state_dict()
        for key, value in module.state_dict().items():
            assert (name, key) == ("output", "bias") or torch.equal(own[key], value)
    plain = build_ranker(SCHEMA, settings, None, SEED).state_dict()
    further = {} if schema is SCHEMA else {"further_output.weight", "further_output.bias"}
    assert set(ranker.state_dict()) - set(plain) == set(further)
    assert all(torch.equal(ranker.state_dict()[name], value) for name, value in plain.items())


def test_each_task_starts_at_its_base_rate() -> None:
    ranker = build_ranker(
        OF_THREE, ModelSettings(embedding_dimension=4, over_layers=[6]), None, SEED
    )
    started = ranker.heads(torch.zeros(2, 6 + 3))
    rates = [torch.sigmoid(logit[0]).item() for logit in started.values()]
    assert list(started) == ["serving", "cart", "conversion"]
    assert rates == pytest.approx([0.1, 0.05, 0.02])


def test_a_task_costs_one_linear_head_and_one_linear_term() -> None:
    settings = ModelSettings(embedding_dimension=4, over_layers=[6])
    one, three = (
        ranker_cost(build_ranker(schema, settings, None, SEED)) for schema in (SCHEMA, OF_THREE)
    )
    width = SCHEMA.dense_width
    assert three.parameters - one.parameters == 2 * (6 + 1 + width)
    # 6 FLOPs per multiply-add, forward and backward; 4 where the input needs no gradient
    assert three.flops - one.flops == 2 * (6 * 6 + 4 * width)
