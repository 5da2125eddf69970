"""The first-order part of a ranker: an id's own weight, and a linear term of the dense input."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.models.factory import build_ranker
from recsys.models.ranker import Ranker, log_odds
from recsys.models.settings import ModelSettings
from tests.support import three_features
from tests.support.three_features import PARTITION, inputs

SCHEMA = replace(three_features.SCHEMA, domains=["feed", "video"])
ARCHITECTURES = ["dlrm", "dcn", "wukong"]


def ranker_of(schema: Schema = SCHEMA, **changes: object) -> Ranker:
    settings = ModelSettings.model_validate({"embedding_dimension": 8, **changes})
    return build_ranker(schema, settings, PARTITION, seed=1)


def table(ranker: Ranker, feature: str) -> Tensor:
    return ranker.embeddings.get_parameter(f"embedding_bags.table_{feature}.weight")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("towers", [False, True])
def test_a_new_ranker_predicts_the_base_rate_for_every_example(
    architecture: str, towers: bool
) -> None:
    ranker = ranker_of(architecture=architecture, towers=towers)
    logits = ranker(*inputs(SCHEMA))["serving"]
    torch.testing.assert_close(logits, torch.full((2,), log_odds(0.1)))


def test_each_domain_starts_at_its_own_base_rate() -> None:
    ranker = ranker_of(replace(SCHEMA, domain_base_rates=[0.05, 0.4]))
    _, sparse = inputs(SCHEMA)
    dense = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    expected = torch.tensor([log_odds(0.05), log_odds(0.4)])
    torch.testing.assert_close(ranker(dense, sparse)["serving"], expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", [None, "pass_through"])
@pytest.mark.parametrize("towers", [False, True])
@torch.no_grad()
def test_own_weights_and_the_linear_term_add_to_what_the_deep_part_gives(
    architecture: str, kind: str | None, towers: bool
) -> None:
    """The deep part is silent at the start, so the logit is the bias and the first-order terms."""
    ranker = ranker_of(architecture=architecture, towers=towers, tower_module={"kind": kind})
    for number, feature in enumerate("abc", start=1):
        weights = table(ranker, feature)
        weights[:, 0] = number * torch.arange(1.0, len(weights) + 1)
    assert ranker.linear is not None
    ranker.linear.weight.copy_(torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
    dense, sparse = inputs(SCHEMA)
    logits = ranker(dense, sparse)["serving"]
    # a has ids 1 and 4; b the list 2, 3 and none; c 0 and 6. A list's weight is its ids' mean.
    own = torch.tensor([2.0 + 2 * 3.5 + 3 * 1.0, 5.0 + 0.0 + 3 * 7.0])
    torch.testing.assert_close(logits, log_odds(0.1) + own + 0.5 * dense[:, 0])


@torch.no_grad()
def test_each_task_has_weights_of_its_own() -> None:
    schema = replace(SCHEMA, tasks=["click", "sale"], further_base_rates=[0.02])
    ranker = ranker_of(schema)
    table(ranker, "a")[:, 0] = 1.0
    table(ranker, "a")[:, 1] = 5.0
    outputs = ranker(*inputs(SCHEMA))
    torch.testing.assert_close(outputs["serving"], torch.full((2,), log_odds(0.1) + 1.0))
    torch.testing.assert_close(outputs["sale"], torch.full((2,), log_odds(0.02) + 5.0))


def test_own_weights_start_at_zero_and_the_rest_does_not() -> None:
    ranker = ranker_of()
    for feature in "abc":
        weights = table(ranker, feature)
        assert not weights[:, 0].any()
        assert weights[:, 1:].all()


def test_without_first_order_the_representation_is_the_over_archs_output() -> None:
    ranker = ranker_of(first_order=False, over_layers=[16, 4])
    assert ranker.linear is None
    assert ranker.represent(*inputs(SCHEMA)).shape == (2, 4)
    assert table(ranker, "a")[:, 0].all()


def test_more_tasks_than_columns_are_refused() -> None:
    tasks = [f"task_{number}" for number in range(5)]
    schema = replace(SCHEMA, tasks=tasks, further_base_rates=[0.1] * 4)
    with pytest.raises(InputError, match="no column for each of 5 tasks"):
        ranker_of(schema, embedding_dimension=4)
