"""What towers are advised, and why."""

from pathlib import Path

import pytest

from recsys.config import load_settings
from recsys.towers.advice import AdvisedModel, choices, tower_counts, work_of
from recsys.towers.step_costs import TowerCluster

REPOSITORY = Path(__file__).resolve().parents[3]
DCN = REPOSITORY / "params" / "models" / "dcn_criteo.yaml"
DLRM = REPOSITORY / "params" / "models" / "dlrm_criteo.yaml"
H100 = REPOSITORY / "params" / "clusters" / "h100.yaml"


def test_choices_are_sorted_and_hold_flat_the_transform_and_every_tower_count() -> None:
    model, cluster = load_settings(DLRM, AdvisedModel), load_settings(H100, TowerCluster)
    found = choices(model, cluster, hosts=4)
    assert [choice.time.total for choice in found] == sorted(choice.time.total for choice in found)
    assert {choice.towers for choice in found} == {0, 2, 4}
    assert {choice.dimension for choice in found if choice.towers == 4} == {128, 64, 32}
    assert all(choice.hosts.groups == choice.towers for choice in found if choice.towers)


@pytest.mark.slow
def test_a_slower_network_never_makes_towers_look_worse() -> None:
    model, cluster = load_settings(DCN, AdvisedModel), load_settings(H100, TowerCluster)
    gains = []
    for rate in (400.0, 50.0, 10.0, 1.0):
        found = choices(model, cluster.model_copy(update={"across_gb_s": rate}), hosts=8)
        flat = next(choice for choice in found if not choice.towers)
        gains.append(flat.time.total / found[0].time.total)
    assert gains == sorted(gains) and gains[-1] > gains[0]


def test_work_is_counted_on_the_model_itself() -> None:
    model = load_settings(DCN, AdvisedModel)
    flat, towers = work_of(model, None), work_of(model, 8, 128)
    assert flat.flops / 1e6 == pytest.approx(96.22, abs=0.01)  # Table 4
    assert towers.flops / 1e6 == pytest.approx(62.60, abs=0.01)
    assert flat.output_width is None and towers.output_width == 8 * (128 + 1)
    assert flat.tower_parameters == 0 < towers.tower_parameters


def test_tower_counts_divide_the_hosts() -> None:
    assert tower_counts(12, 26) == [2, 3, 4, 6, 12]
    assert tower_counts(64, 26) == [2, 4, 8, 16]


def test_towers_divide_the_hosts_and_are_at_most_as_many_as_the_features() -> None:
    assert tower_counts(9, 26) == [3, 9]
    assert tower_counts(12, 5) == [2, 3, 4]
