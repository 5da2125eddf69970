"""The command advise: what it says, why, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.commands import advise
from recsys.config import InputError, load_settings
from recsys.towers.step_costs import TowerCluster

REPOSITORY = Path(__file__).resolve().parents[3]
DCN = REPOSITORY / "params" / "models" / "dcn_criteo.yaml"
DLRM = REPOSITORY / "params" / "models" / "dlrm_criteo.yaml"
H100 = REPOSITORY / "params" / "clusters" / "h100.yaml"


def test_says_towers_how_many_how_narrow_and_why(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(advise, str(DCN), "--cluster", str(H100), "--hosts", "8")
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
    tmp_path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    free = load_settings(H100, TowerCluster).model_dump() | {"across_gb_s": 1e6, "copy_gb_s": 10.0}
    cluster = tmp_path / "free.yaml"
    cluster.write_text(json.dumps(free))
    command(advise, str(DLRM), "--cluster", str(cluster), "--hosts", "2")
    assert "advice: stay flat" in capsys.readouterr().out


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
            "h100.yaml: unknown key 'ranks_per_host'",
        ),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, command: Callable[..., None]
) -> None:
    with pytest.raises(InputError) as mistake:
        command(advise, *arguments)
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)
