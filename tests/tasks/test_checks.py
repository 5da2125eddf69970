"""What contradicts another file, or the data, is one line before the first minute of work."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.config import InputError
from recsys.data.schema import CategoricalFeature, Schema, Window
from tasks.checks import check_settings, check_settings_and_data
from tasks.overrides import apply_overrides

ROOT = Path(__file__).parents[2]
SCHEMA = Schema(
    dataset="toy",
    dense=["price"],
    categorical=[CategoricalFeature("user", 10), CategoricalFeature("seen", 10, "list")],
    domains=["feed", "video"],
    windows=[Window(f"w{index}", index, index + 1, 5, 0) for index in range(6)],
    initial_base_rate=0.1,
    planted_groups={},
    tasks=["click", "conversion"],
    further_base_rates=[0.2],
)
SEQUENCE = "{%s: {target: %s, length: 2}}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's settings, and windows of SCHEMA without rows."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "data/windows").mkdir(parents=True)
    SCHEMA.save(tmp_path / "data/windows")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_projects_own_settings_pass(project: Path) -> None:
    check_settings_and_data()
    shutil.rmtree(project / "data")
    check_settings_and_data()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"towers.partition.probe_windows": "5"},
            r"params/towers.yaml: key 'partition.probe_windows': .* at most 4",
        ),
        (
            {"students.auto_windows": "5"},
            r"params/students.yaml: key 'auto_windows': .* at most 4 \(params/evaluate.yaml",
        ),
        (
            {"students.arms.wide": "{mode: none, rows: scores_elsewhere}"},
            r"params/students.yaml: key 'distillation.rows': .* arm 'wide' of student 'feed'",
        ),
        (
            {"teacher.checkpoint_asynchronously": "true", "train.table_memory": "file"},
            r"params/teacher.yaml: key 'checkpoint_asynchronously': .*params/train.yaml",
        ),
        (
            {"students.model.towers": "true"},
            r"params/students.yaml: key 'model.towers': 'feed': students are too small",
        ),
        (
            {"students.arms.peer.mode": "co_distillation"},
            r"params/students.yaml: .*'peer': mode co_distillation needs peer_model",
        ),
        (
            {
                "students.arms.peer.mode": "co_distillation",
                "students.arms.peer.peer_model.towers": "true",
            },
            r"params/students.yaml: key 'distillation.peer_model.towers'",
        ),
        ({"train.tower_transform": "true"}, r"params/train.yaml: key 'tower_transform'"),
        (
            {"train.sharding": "grid_shard"},
            r"params/train.yaml: key 'sharding': grid_shard does not stay inside .*towers.yaml",
        ),
        (
            {"towers.transform.ranks_per_host": "3"},
            r"params/towers.yaml: key 'transform.ranks_per_host': 2 ranks",
        ),
        (
            {"towers.transform.hosts_per_tower": "3"},
            r"params/towers.yaml: key 'transform.hosts_per_tower': 3 hosts per tower: 2 ranks",
        ),
        ({"towers.partition.towers": "1"}, r"'transform.hosts_per_tower': .*leave 1 without one"),
    ],
)
def test_settings_that_contradict_each_other(
    project: Path, overrides: dict[str, str], message: str
) -> None:
    check_settings()
    with pytest.raises(InputError, match=message) as error:
        apply_overrides(overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"students.students.1.domain": "search"},
            r"params/students.yaml: key 'students.1.domain': 'video' has domain 'search'; the data "
            r"has feed, video$",
        ),
        (
            {"students.students.0.tasks": "[purchase]"},
            r"params/students.yaml: key 'students.0.tasks': .*'purchase': the data have click",
        ),
        (
            {"students.students.0.task_weights.conversion": "2.0"},
            r"params/students.yaml: key 'students.0.task_weights.conversion': .*are: none",
        ),
        (
            {"students.students.0.budget.parameters": "10"},
            r"params/students.yaml: key 'students.0.budget.parameters': .*more than 10",
        ),
        (
            {"students.model.sequences": SEQUENCE % ("user", "user")},
            r"params/students.yaml: key 'model.sequences.user': no list feature 'user'; .*seen",
        ),
        (
            {"teacher.model.sequences": SEQUENCE % ("seen", "ad")},
            r"params/teacher.yaml: key 'model.sequences.seen': target 'ad' .* there are: user",
        ),
        (
            {"towers.partition.probe_model.sequences": SEQUENCE % ("clicked", "user")},
            r"params/towers.yaml: key 'partition.probe_model.sequences.clicked'",
        ),
        (
            {"teacher.task_weights.purchase": "2.0"},
            r"params/teacher.yaml: key 'task_weights.purchase': .*are: conversion",
        ),
        (
            {"train.table_sharding.table_usr": "row_wise"},
            r"params/train.yaml: key 'table_sharding': no table 'table_usr'; .*'table_user'",
        ),
        (
            {"train.table_rate_factors.table_usr": "0.5"},
            r"params/train.yaml: key 'table_rate_factors': no table 'table_usr'; .*'table_user'",
        ),
        (
            {"evaluate.first_evaluation_window": "6"},
            r"params/evaluate.yaml: key 'first_evaluation_window': .*number of windows 6, got 6",
        ),
    ],
)
def test_settings_that_the_data_do_not_have(
    project: Path, overrides: dict[str, str], message: str
) -> None:
    apply_overrides(overrides)  # the data may be of other settings: no reason to refuse
    with pytest.raises(InputError, match=message) as error:
        check_settings_and_data()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_stage_command_checks_all_stages(project: Path) -> None:
    apply_overrides({"students.students.1.domain": "search"})
    command = [sys.executable, "-m", "flows.partition"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(project)}
    ended = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: params/students.yaml: key 'students.1")
