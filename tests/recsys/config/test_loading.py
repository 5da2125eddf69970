"""One wrong key is one clear error that names the file, the key and the nearest valid one."""

from pathlib import Path

import pytest

from recsys.config import InputError, Settings, load_settings
from recsys.data.settings import DataSettings
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.teacher_settings import TeacherSettings
from recsys.training.settings import TrainSettings


class Inner(Settings):
    learning_rate: float


class Outer(Settings):
    rows: int
    parts: tuple[Inner, ...] = ()
    model: Inner | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text)
    return path


def test_good_settings_load(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "rows: 3\nmodel: {learning_rate: 0.1}\n"), Outer)
    assert settings == Outer(rows=3, model=Inner(learning_rate=0.1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("row: 3\nrows: 3\n", r"unknown key 'row'; did you mean 'rows'\?"),
        (
            "rows: 3\nmodel: {learning_rte: 1, learning_rate: 1}\n",
            r"'model.learning_rte'; did you mean 'learning_rate'\?",
        ),
        (
            "rows: 3\nparts: [{learning_rate: 1, lerning_rate: 1}]\n",
            r"did you mean 'learning_rate'\?",
        ),
        ("rows: many\n", "key 'rows': .* got 'many'"),
        ("parts: []\n", "missing key 'rows'"),
        ("- rows\n", "expected a mapping"),
        ("rows: [\n", "not valid YAML"),
        ("rows: 3\nrows: 4\n", "key 'rows' is in lines 1 and 2; give it once"),
        (
            "rows: 3\nmodel: {learning_rate: 1, learning_rate: 2}\n",
            "key 'learning_rate' is in lines 2 and 2",
        ),
        ("rows: 3\nparts:\n- {learning_rate: 1}\nparts: []\n", "key 'parts' is in lines 2"),
        ("rows: 2024-13-01\n", "not valid YAML: month must be in 1..12"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=expected) as error:
        load_settings(path, Outer)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    text = "rows: 3\nmodel: &one {learning_rate: 1}\nparts: [{<<: *one, learning_rate: 2}]\n"
    settings = load_settings(write(tmp_path, text), Outer)
    assert settings.parts == (Inner(learning_rate=2),)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, "rows: 1\n")
    with pytest.raises(InputError, match=r"no such file; did you mean 'train'\?"):
        load_settings(tmp_path / "trian.yaml", Outer)


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (TrainSettings, "a: " + "[" * 3000 + "]" * 3000, "not valid YAML: nested too deeply"),
        (TrainSettings, "memory_gb: .inf", "key 'memory_gb': Input should be a finite number"),
        (TrainSettings, "table_learning_rate: 1.0e+400", "key 'table_learning_rate': .*finite"),
        (DataSettings, "window_hours: .inf", "key 'window_hours': .*finite"),
        (TeacherSettings, f"seed: {2**64}", "key 'seed': Input should be less than"),
        (StudentsSettings, f"seeds: [{2**64}]", r"key 'seeds.0': Input should be less than"),
        (
            StudentsSettings,
            "students: [{name: a, domain: feed}, {name: a, domain: video}]",
            r"student names must differ, got \['a', 'a'\]$",
        ),
        (
            StudentsSettings,
            "students: [{name: size.json, domain: feed}]",
            r"key 'students.0.name': .*must not end in \.json",
        ),
    ],
)
def test_what_no_machine_can_use_is_one_short_line(
    model: type[Settings], text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_settings(path, model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
