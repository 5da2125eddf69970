"""One set of defaults: the settings classes hold them, params/ shows the same values."""

import re
from pathlib import Path

import pytest
import yaml

from recsys.config import InputError, load_settings, parse_settings
from recsys.data.settings import DatasetSettings, SyntheticSettings
from recsys.distill.student_settings import StudentsSettings
from recsys.planning.hardware import CPU, GPU, Hardware
from tasks.settings import FILES, load_project

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params"
# Folders of the project, which no library can know.
OF_THE_PROJECT = {"data": {"root"}, "train": {"table_file_dir"}}
ALTERNATIVES = {"teacher_ladder"}  # models to choose from, no defaults
# A line such as "# key: value" or "# - key: value", and the lines that go on with it.
IN_A_COMMENT = re.compile(r"^ *# (?:- )?[a-z_]+: .*\n(?:^ *# {2,}.*\n)*", re.MULTILINE)


@pytest.mark.parametrize("name", sorted(FILES.keys() - ALTERNATIVES))
def test_a_file_shows_the_defaults_of_its_class(name: str) -> None:
    settings = load_settings(PARAMS / f"{name}.yaml", FILES[name]).model_dump()
    defaults = FILES[name]().model_dump()
    of_the_project = {key: settings.pop(key) for key in OF_THE_PROJECT.get(name, set())}
    assert settings == {key: defaults[key] for key in defaults if key not in of_the_project}


def test_every_file_of_params_has_a_class() -> None:
    assert {path.stem for path in PARAMS.glob("*.yaml")} == FILES.keys()


def test_the_hardware_and_the_stream_that_is_generated_are_the_defaults() -> None:
    assert load_settings(PARAMS / "hardware/cpu.yaml", Hardware) == CPU
    assert load_settings(PARAMS / "hardware/h100.yaml", Hardware) == GPU
    dataset = load_settings(PARAMS / "datasets/synthetic.yaml", DatasetSettings)
    assert dataset.synthetic == SyntheticSettings()


def in_comments() -> list[tuple[str, str]]:
    """(file, its contents with one comment made a setting) for every comment that is one."""
    found = []
    for name in [*FILES, "datasets/synthetic"]:
        text = (PARAMS / f"{name}.yaml").read_text()
        for match in IN_A_COMMENT.finditer(text):
            setting = re.sub(r"^( *)# ", r"\1", match[0], flags=re.MULTILINE)
            found.append((name, text[: match.start()] + setting + text[match.end() :]))
    return found


def test_what_a_comment_offers_can_be_set() -> None:
    offered = in_comments()
    assert len(offered) > 15
    for name, text in offered:
        model = FILES.get(name, DatasetSettings)
        try:
            settings = parse_settings(text, name, model)
        except InputError as error:
            assert "network_interface: 2 nodes need" in str(error)  # the next comment
        else:
            assert settings != load_settings(PARAMS / f"{name}.yaml", model)


def test_a_model_with_one_key_has_the_rest_from_its_own_stage(tmp_path: Path) -> None:
    for name, model in FILES.items():
        if "model" in model.model_fields:
            path = tmp_path / f"{name}.yaml"
            path.write_text("model: {cross_rank: 4}\n")
            shown = yaml.safe_load((PARAMS / f"{name}.yaml").read_text())["model"]
            found = load_settings(path, model).model_dump()["model"]
            wanted = {**shown, "cross_rank": 4}
            assert {key: found[key] for key in wanted} == wanted


def test_what_a_student_and_an_arm_leave_out_is_that_of_all(tmp_path: Path) -> None:
    path = tmp_path / "students.yaml"
    path.write_text(
        "model: {cross_rank: 4}\n"
        "students: [{name: a, domain: a, model: {over_layers: [9]},"
        " distillation: {loss_weight: 2.0}}]\n"
        "distillation: {gradient_scale: 5.0, adapter: {update: after}}\n"
        "arms: {plain: {mode: none}, other: {adapter: {learning_rate: 0.5}}}\n"
    )
    settings = load_settings(path, StudentsSettings)
    student = settings.students[0]
    model = settings.model_of(student)
    assert (model.over_layers, model.cross_rank, model.embedding_dimension) == ([9], 4, 8)
    arm = settings.distillation_of(student, "other")
    assert (arm.loss_weight, arm.gradient_scale, arm.mode) == (2.0, 5.0, "auxiliary")
    assert (arm.adapter.update, arm.adapter.learning_rate) == ("after", 0.5)
    assert settings.distillation_of(student, "plain").mode == "none"


def test_the_library_names_no_file_of_params() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "recsys").rglob("*.py"))
        if path.parent.name != "commands"  # their help names the project's files as examples
        for line in path.read_text().splitlines()
        if "params/" in line or ".work/" in line
    ]
    assert found == []


def test_a_message_names_the_file_that_a_value_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    project = load_project()
    train, model = project.train_teacher, project.teacher.model
    assert train.where("hosts_per_tower") == ("params/towers.yaml: key 'transform.hosts_per_tower'")
    assert train.where("memory_gb") == "params/train.yaml: key 'memory_gb'"
    assert train.where("hardware.cores") == "params/train.yaml: key 'hardware.cores'"
    assert model.where("tower_module.kind") == "params/towers.yaml: key 'module.kind'"
    assert model.where("cross_rank") == "params/teacher.yaml: key 'model.cross_rank'"
