"""params/towers.yaml: one file for the teacher's towers, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.config import InputError
from recsys.towers.settings import TowersSettings
from recsys.training.settings import TrainSettings
from tasks.teacher_settings import load_teacher

TEACHER: dict[str, Any] = {"model": {"architecture": "dcn", "embedding_dimension": 16}}
TOWERS: dict[str, Any] = {
    "partition": {"towers": 2},
    "module": {"kind": "dot", "dimension": 4, "vectors": 2, "vectors_per_feature": 0},
    "transform": {
        "enabled": True,
        "ranks_per_host": 2,
        "hosts_per_tower": 3,
        "communication": {"forward": "fp16"},
    },
}


def load(
    folder: Path,
    teacher: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    **towers: Any,
) -> tuple[Any, TrainSettings]:
    files = {
        "teacher": teacher or TEACHER,
        "train": train or {"world_size": 12},
        "towers": {**TOWERS, **towers},
    }
    for name, values in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return load_teacher(folder)


def test_the_file_sets_module_and_transform(tmp_path: Path) -> None:
    teacher, train = load(tmp_path)
    assert teacher.model.towers
    assert (teacher.model.tower_kind, teacher.model.tower_dimension) == ("dot", 4)
    assert (teacher.model.tower_module.vectors, teacher.model.tower_module.vectors_per_feature) == (
        2,
        0,
    )
    assert (train.tower_transform, train.ranks_per_host, train.hosts_per_tower) == (True, 2, 3)
    assert (train.communication.forward, train.communication.backward) == ("fp16", "fp32")


def test_what_the_transform_leaves_open_is_that_of_train_yaml(tmp_path: Path) -> None:
    given = {"world_size": 12, "ranks_per_host": 4, "communication": {"gradients": "bf16"}}
    _, train = load(tmp_path, train=given, transform={"enabled": True, "ranks_per_host": None})
    assert (train.tower_transform, train.ranks_per_host, train.communication.gradients) == (
        True,
        4,
        "bf16",
    )


@pytest.mark.parametrize(
    "off", [{"transform": {"enabled": False, "ranks_per_host": 2}}, {"module": {"enabled": False}}]
)
def test_off_leaves_the_ranks_as_they_are(tmp_path: Path, off: dict[str, Any]) -> None:
    teacher, train = load(tmp_path, **off)
    assert teacher.model.towers == ("module" not in off)
    assert train == TrainSettings(world_size=12)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train": {"tower_transform": True}},
            r"train.yaml: key 'tower_transform': .*towers.yaml: key 'transform'\)",
        ),
        (
            {"train": {"hosts_per_tower": 1}},
            r"train.yaml: key 'hosts_per_tower': .*towers.yaml: key 'transform'\)",
        ),
        (
            {"teacher": {"model": {"towers": True}}},
            r"teacher.yaml: key 'model.towers': .*towers.yaml: key 'module'\)",
        ),
        ({"module": {"dimension": 0}}, r"towers.yaml: key 'module.dimension'"),
        (
            {"transform": {"hosts": 2}},
            r"unknown key 'transform.hosts'; valid keys: .*hosts_per_tower",
        ),
    ],
)
def test_a_wrong_key_or_one_in_another_file_is_refused(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, **files)


def test_the_file_of_the_project_names_every_key() -> None:
    values = yaml.safe_load(Path("params/towers.yaml").read_text())
    chosen = TowersSettings.model_validate(values)
    for section in ("partition", "module", "transform"):
        assert set(values[section]) == set(type(getattr(chosen, section)).model_fields)
