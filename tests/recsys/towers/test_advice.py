"""``python -m recsys.towers advise``: what it says, why, and what it refuses."""

import json
from pathlib import Path

import pytest

from recsys.commands.advise import main
from recsys.config import load_settings
from recsys.towers.advice import AdvisedModel, choices, tower_counts, work_of
from recsys.towers.step_costs import TowerCluster

REPOSITORY = Path(__file__).resolve().parents[3]
DCN = REPOSITORY / "params" / "models" / "dcn_criteo.yaml"
DLRM = REPOSITORY / "params" / "models" / "dlrm_criteo.yaml"
H100 = REPOSITORY / "params" / "clusters" / "h100.yaml"


def test_says_towers_how_many_how_narrow_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(DCN), "--cluster", str(H100), "--hosts", "8"]) == 0
    printed = capsys.readouterr().out
    assert "advice: 8 towers" in printed
    assert (
        "--set towers.partition.towers=8 --set towers.transform.hosts_per_tower=1 --set "
        "towers.module.dimension=64" in printed
    )
    assert "8 towers, dimension 64  " in printed, "a narrow output leaves out no part of the table"
    for word in (
        "flat",
        "transform alone",
        "compute",
        "across",
        "MB across",
        "ms saved by term",
        "Figures 5 and 13",
    ):
        assert word in printed


def test_says_flat_where_the_network_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = load_settings(H100, TowerCluster).model_dump() | {"across_gb_s": 1e6, "copy_gb_s": 10.0}
    cluster = tmp_path / "free.yaml"
    cluster.write_text(json.dumps(free))
    assert main(["advise", str(DLRM), "--cluster", str(cluster), "--hosts", "2"]) == 0
    assert "advice: stay flat" in capsys.readouterr().out


def test_choices_are_sorted_and_hold_flat_the_transform_and_every_tower_count() -> None:
    model, cluster = load_settings(DLRM, AdvisedModel), load_settings(H100, TowerCluster)
    found = choices(model, cluster, hosts=4)
    assert [choice.time.total for choice in found] == sorted(choice.time.total for choice in found)
    assert {choice.towers for choice in found} == {0, 2, 4}
    assert {choice.dimension for choice in found if choice.towers == 4} == {128, 64, 32}
    assert all(choice.hosts.groups == choice.towers for choice in found if choice.towers)


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
    assert flat.output_width is None and towers.output_width == 8 * 128
    assert flat.tower_parameters == 0 < towers.tower_parameters


def test_tower_counts_divide_the_hosts() -> None:
    assert tower_counts(12, 26) == [2, 3, 4, 6, 12]
    assert tower_counts(64, 26) == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(DCN), "--cluster", str(H100), "--hosts", "1"], "--hosts 1: nothing crosses hosts"),
        (
            [str(DCN), "--cluster", str(H100), "--hosts", "29"],
            "--hosts 29: no number of towers from 2 to 26",
        ),
        (
            [str(DCN), "--cluster", "params/clusters/h10.yaml", "--hosts", "8"],
            "h10.yaml: no such file",
        ),
        (
            ["params/models/dcn.yaml", "--cluster", str(H100), "--hosts", "8"],
            "dcn.yaml: no such file",
        ),
        (
            [str(H100), "--cluster", str(H100), "--hosts", "8"],
            "h100.yaml: missing key 'batch_size'",
        ),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
