"""Feature gates: one number per feature that multiplies its embeddings, own weights included."""

import pytest
import torch
from torch import Tensor

from recsys.models.factory import build_ranker
from recsys.models.ranker import GATE_SPEED, Ranker
from recsys.models.settings import ModelSettings
from tests.support.three_features import PARTITION, SCHEMA, inputs

MODELS = [
    pytest.param({"architecture": architecture, "towers": towers}, id=f"{architecture}-{towers}")
    for architecture in ("dlrm", "dcn", "wukong")
    for towers in (False, True)
]


def ranker_of(model: dict[str, object], gates: bool = True) -> Ranker:
    """With tables and a deep part that are not silent."""
    given = {"embedding_dimension": 8, "feature_gates": gates, **model}
    ranker = build_ranker(SCHEMA, ModelSettings.model_validate(given), PARTITION, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        ranker.output.weight.normal_()
        for feature in "abc":
            table(ranker, feature).normal_()
    return ranker


def table(ranker: Ranker, feature: str) -> Tensor:
    return ranker.embeddings.get_parameter(f"embedding_bags.table_{feature}.weight")


def set_gate(ranker: Ranker, feature: str, value: float) -> None:
    towers = PARTITION.towers if ranker.interaction.members else [["a", "b", "c"]]
    for tower, members in enumerate(towers):
        if feature in members:
            gates = ranker.interaction.gates[str(tower)]
            with torch.no_grad():
                gates[members.index(feature)] = (value - 1.0) / GATE_SPEED


@pytest.mark.parametrize("model", MODELS)
def test_a_new_ranker_is_the_one_without_gates(model: dict[str, object]) -> None:
    gated, plain = ranker_of(model), ranker_of(model, gates=False)
    assert torch.equal(gated(*inputs())["serving"], plain(*inputs())["serving"])
    assert not plain.interaction.gates


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("feature", "abc")
def test_a_gate_is_a_factor_of_its_features_table(model: dict[str, object], feature: str) -> None:
    gated, scaled = ranker_of(model), ranker_of(model)
    set_gate(gated, feature, 2.5)
    with torch.no_grad():
        table(scaled, feature).mul_(2.5)
    expected = scaled(*inputs())["serving"]
    torch.testing.assert_close(gated(*inputs())["serving"], expected)
    assert not torch.equal(expected, ranker_of(model)(*inputs())["serving"])


def test_a_gate_learns_as_fast_as_its_speed_says() -> None:
    """The gradient of a gate is that of the factor, times GATE_SPEED."""
    ranker = ranker_of({})
    ranker(*inputs())["serving"].sum().backward()
    found = ranker.interaction.gates["0"].grad
    assert found is not None
    step, moved = 1e-3, []
    for place, feature in enumerate("abc"):
        ends = []
        for change in (-step, step):
            other = ranker_of({}).double()
            set_gate(other, feature, 1.0 + change)
            dense, sparse = inputs()
            ends.append(other(dense.double(), sparse)["serving"].sum().item())
        moved.append((ends[1] - ends[0]) / (2 * step) * GATE_SPEED)
        assert found[place].item() == pytest.approx(moved[place], rel=1e-3)
