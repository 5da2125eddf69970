"""Every params file of the distil stages loads, and a wrong one is one clear error."""

from pathlib import Path

import pytest

from recsys.config import InputError, Settings, load_settings
from recsys.data.schema import Schema
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.student_checks import check_students
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.teacher_settings import TeacherSettings
from recsys.evaluation.settings import EvaluateSettings

PARAMS = Path(__file__).parents[3] / "params"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("teacher", TeacherSettings),
        ("augment", AugmentSettings),
        ("students", StudentsSettings),
        ("evaluate", EvaluateSettings),
    ],
)
def test_params_load(name: str, model: type[Settings]) -> None:
    load_settings(PARAMS / f"{name}.yaml", model)


def test_unknown_domain_names_the_known_ones() -> None:
    settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
    with pytest.raises(InputError, match=r"domain 'feed'; the data has shop, search"):
        check_students(Schema("toy", [], [], ["shop", "search"], [], 0.1, {}), settings)


@pytest.mark.parametrize("name", ["../up", "", "a/b"])
def test_student_name_must_be_a_folder_name(tmp_path: Path, name: str) -> None:
    text = (PARAMS / "students.yaml").read_text().replace("name: feed", f"name: '{name}'")
    (tmp_path / "students.yaml").write_text(text)
    with pytest.raises(InputError, match="folder name"):
        load_settings(tmp_path / "students.yaml", StudentsSettings)
