"""``--set`` reaches every key that a settings class has, and writes all or nothing."""

import shutil
from pathlib import Path

import pytest
import yaml

from recsys.config import InputError, load_settings
from recsys.distill.student_settings import StudentsSettings
from recsys.training.settings import TrainSettings
from tasks.overrides import apply_overrides

PARAMS = Path(__file__).parents[2] / "params"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/ in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(PARAMS, tmp_path / "params")).relative_to(tmp_path)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.yaml"))}


def changed(params: Path, overrides: dict[str, str]) -> dict[str, bytes]:
    before = contents(params)
    apply_overrides(overrides)
    after = contents(params)
    assert after.keys() == before.keys()
    return {path.name: text for path, text in after.items() if text != before[path]}


def test_an_override_changes_one_line_and_keeps_the_rest(params: Path) -> None:
    before = (params / "data.yaml").read_text()
    assert list(changed(params, {"data.window_hours": "12"})) == ["data.yaml"]
    text = (params / "data.yaml").read_text()
    assert text == before.replace("window_hours: 24.0  ", "window_hours: 12    ")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("train", "ranks_per_host", 2),  # a comment in the file
        ("train", "schedule.warmup_steps", 10),  # in a section that is a comment
        ("train", "dense_optimizer_options.weight_decay", 0.01),  # a free key
        ("train", "table_sharding.table_user_id", "row_wise"),
        ("train", "nodes.keep_alive_s", 7),
        ("train", "communication.forward", "fp16"),  # in a mapping on one line
        ("students", "distillation.adapter.kind", "replace"),
        ("students", "distillation.hard_label_weight", 1.0),
        ("students", "keep_checkpoints", 3),  # not in the file at all
        ("students", "arms.distilled.mode", "shared"),
        ("students", "arms.wide.head_layers", [64]),
        ("students", "students.1.budget.parameters", 10**9),
        ("students", "model.wukong.layers", 3),
        ("towers", "transform.communication.forward", "fp16"),  # null in the file
        ("teacher", "task_weights.conversion", 2.0),
        ("teacher_ladder", "models.dcn_small.cross_layers", 1),
        ("datasets.synthetic", "synthetic.rows", 1000),
        ("datasets.synthetic", "synthetic.domains.0.name", "home"),
        ("datasets.criteo", "criteo.rows_per_second", 10.0),
    ],
)
def test_every_documented_key_can_be_set(params: Path, file: str, key: str, value: object) -> None:
    path = params / f"{file.replace('.', '/')}.yaml"
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert list(changed(params, {f"{file}.{key}": yaml.safe_dump(value)})) == [path.name]
    found = yaml.safe_load(path.read_text())
    for part in key.split("."):
        found = found[int(part) if isinstance(found, list) else part]
    assert found == value
    assert set(comments) <= set(path.read_text().splitlines())


def test_a_key_of_a_list_that_the_file_leaves_out_changes_the_default_list(params: Path) -> None:
    path = params / "students.yaml"
    values = yaml.safe_load(path.read_text())
    del values["students"], values["arms"]
    path.write_text(yaml.safe_dump(values))
    apply_overrides({"students.students.1.name": "film", "students.arms.distilled.mode": "shared"})
    settings = load_settings(path, StudentsSettings)
    assert [(one.name, one.domain) for one in settings.students] == [
        ("feed", "feed"),
        ("film", "video"),
    ]
    assert {name: arm.mode for name, arm in settings.arms.items()} == {
        "plain": "none",
        "distilled": "shared",
        "all_rows": "none",
    }


def test_a_section_that_the_file_leaves_out_keeps_its_defaults(params: Path) -> None:
    path = params / "train.yaml"
    values = yaml.safe_load(path.read_text())
    del values["communication"]
    path.write_text(yaml.safe_dump(values))
    apply_overrides({"train.communication.backward": "bf16"})
    settings = load_settings(path, TrainSettings).communication
    assert (settings.forward, settings.backward) == ("fp32", "bf16")


def test_a_file_with_a_key_twice_is_refused_in_one_line(params: Path) -> None:
    path = params / "train.yaml"
    path.write_text(path.read_text() + "world_size: 2\n")
    before = contents(params)
    with pytest.raises(InputError, match=r"train.yaml: not valid YAML: key 'world_size' is in"):
        apply_overrides({"train.world_size": "1"})
    assert contents(params) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trian.world_size": "1"}, r"no parameter file params/trian.yaml; did you mean 'train'"),
        ({"train": "1"}, r"--set train: names no key"),
        ({"datasets.sythetic.format": "table"}, r"did you mean 'datasets.synthetic'"),
        ({"train.wrld_size": "1"}, r"no such key in params/train.yaml; did you mean 'world_size'"),
        ({"train.schedule.warmup": "1"}, r"did you mean 'warmup_steps'"),
        ({"data.dataset.name": "1"}, r"'dataset' is a single value and has no keys"),
        ({"students.students.2.name": "x"}, r"'2' is not an element of a list of 2"),
        ({"students.students.0.nme": "x"}, r"did you mean 'name'"),
        ({"train.world_size": "two"}, r"params/train.yaml: key 'world_size': .* got 'two'"),
        ({"train.world_size": "["}, r"--set train.world_size: not valid YAML"),
        ({"train.hardware": "params/hardware/gpu.yaml"}, r"params/hardware/gpu.yaml: no such file"),
        ({"data.dataset": "criteoo"}, r"params/datasets/criteoo.yaml: .*did you mean 'criteo'"),
        ({"data.dataset": "../data"}, r"params/data.yaml: key 'dataset': expected the name"),
        ({"towers.partition.probe_windows": "5"}, r"params/towers.yaml: key 'partition.probe_w"),
        ({"evaluate.first_evaluation_window": "2"}, r"must be at most 2 \(params/evaluate.yaml"),
        ({"teacher.model.towers": "true"}, r"params/teacher.yaml: key 'model.towers'"),
    ],
)
def test_a_refused_override_leaves_every_file_as_it_was(
    params: Path, overrides: dict[str, str], message: str
) -> None:
    before = contents(params)
    with pytest.raises(InputError, match=message) as error:
        apply_overrides({"data.window_hours": "12", "augment.batch_size": "64", **overrides})
    assert "\n" not in str(error.value)
    assert contents(params) == before
    assert [path.name for path in params.iterdir()] == [path.name for path in PARAMS.iterdir()]
