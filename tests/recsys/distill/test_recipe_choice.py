"""What is auto of rows and rates: the lowest NE on early windows, whatever comes after them."""

import json
from pathlib import Path

import polars as pl
import pytest

from recsys.config import InputError, parse_settings
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.online_stream import StreamJob, advance
from recsys.distill.scoring import score_windows
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from tests.support.files import contents
from tests.support.killing import kill
from tests.support.student_runs import run, run_and_die
from tests.support.toy_stream import STUDENTS, TEACHER, TRAIN, WINDOWS

SETTINGS = STUDENTS.model_copy(
    update={
        "arms": {
            "plain": DistillationSettings(mode="none"),
            "chosen": DistillationSettings(mode="shared", rows="auto"),
            "bare": DistillationSettings(mode="none", rows="auto"),
        },
        "auto_windows": 3,
        "table_learning_rate": "auto",
        "rates_tried": [0.3, 0.001],
    }
)


def test_each_arm_is_trained_on_what_chosen_json_says(
    students_dir: Path, windows_dir: Path, scores_dir: Path, tmp_path: Path
) -> None:
    said = json.loads((students_dir / "one/chosen.json").read_text())
    assert list(said) == ["bare", "chosen", "plain"]
    rates = ("0.3", "0.001")
    assert set(said["plain"]["ne"]) == {f"own at {rate}" for rate in rates}
    for arm, rows in (("chosen", ["own", "scores_elsewhere", "all"]), ("bare", ["own", "all"])):
        assert set(said[arm]["ne"]) == {f"{one} at {rate}" for one in rows for rate in rates}
    for one in said.values():
        assert one["windows"] == ["w1", "w2"]
        chosen = f"{one['rows']} at {one['table_learning_rate']:g}"
        assert one["ne"][chosen] == min(one["ne"].values())
    arms = {
        name: spec.model_copy(update={"rows": said[name]["rows"]})
        for name, spec in SETTINGS.arms.items()
    }
    assert {one["table_learning_rate"] for one in said.values()} == {0.3}  # 0.001 learns nothing
    fixed = SETTINGS.model_copy(update={"arms": arms, "table_learning_rate": 0.3})
    train_students(TrainingJob(windows_dir, fixed, TRAIN, tmp_path, scores_dir=scores_dir))
    assert contents(tmp_path) == {
        name: value for name, value in contents(students_dir).items() if "chosen.json" not in name
    }


def test_the_choice_knows_nothing_of_later_windows(
    students_dir: Path, windows_dir: Path, scores_dir: Path, tmp_path: Path
) -> None:
    """The labels of the last window, turned round, change its models and not the choice."""
    windows, output = tmp_path / "windows", tmp_path / "output"
    output.mkdir()
    for name, value in contents(windows_dir).items():
        (windows / name).parent.mkdir(parents=True, exist_ok=True)
        (windows / name).write_bytes(value)
    part = windows / WINDOWS[3].name / "part-00000.parquet"
    frame = pl.read_parquet(part)
    frame.with_columns(label=1.0 - pl.col("label")).write_parquet(part)
    train_students(TrainingJob(windows, SETTINGS, TRAIN, output, scores_dir=scores_dir))
    files = [contents(folder) for folder in (output, students_dir)]
    assert files[0]["one/chosen.json"] == files[1]["one/chosen.json"]
    weights = "one/chosen/export/weights.safetensors"
    assert files[0][weights] != files[1][weights]


def test_killed_while_it_chooses_it_ends_with_the_same_bytes(
    windows_dir: Path,
    scores_dir: Path,
    students_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    kill(run_and_die, windows_dir, scores_dir, SETTINGS, 12, tmp_path)
    run(windows_dir, scores_dir, SETTINGS, tmp_path)
    assert contents(tmp_path / "output") == contents(students_dir)
    assert "one, chosen: rows " in capfd.readouterr().err


def test_a_stream_waits_for_the_windows_and_ends_with_the_batch_bytes(
    windows_dir: Path, tmp_path: Path
) -> None:
    def job(finished: bool, at_once: int) -> StreamJob:
        return StreamJob(
            windows_dir,
            None,
            TEACHER,
            AugmentSettings(teacher="own"),
            SETTINGS,
            TRAIN,
            tmp_path / f"work-{at_once}",
            finished=finished,
            windows_at_once=at_once,
        )

    outputs = {name: tmp_path / name for name in ("teacher", "scores", "students")}
    for folder in outputs.values():
        folder.mkdir()
    train_teacher(TrainingJob(windows_dir, TEACHER, TRAIN, outputs["teacher"]))
    score_windows(
        windows_dir, None, outputs["teacher"], TEACHER, AugmentSettings(), TRAIN, outputs["scores"]
    )
    scores = outputs["scores"]
    students = outputs["students"]
    train_students(TrainingJob(windows_dir, SETTINGS, TRAIN, students, scores_dir=scores))
    taken = [advance(job(True, 1), tmp_path / f"out-{call}").new for call in range(2)]
    assert taken == [["w0", "w1", "w2"], ["w3"]]
    assert contents(tmp_path / "out-1" / "students") == contents(students)

    too_few = SETTINGS.model_copy(update={"auto_windows": 4})
    waiting = StreamJob(
        windows_dir,
        None,
        TEACHER,
        AugmentSettings(teacher="own"),
        too_few,
        TRAIN,
        tmp_path / "waiting",
    )
    assert advance(waiting, tmp_path / "nothing").new == []  # the last of four may still grow


def test_too_few_windows_are_refused(windows_dir: Path, scores_dir: Path, tmp_path: Path) -> None:
    text = "students: [{name: a, domain: a}]\nauto_windows: 5\n"
    settings = parse_settings(text, "students.yaml", StudentsSettings)
    with pytest.raises(
        InputError,
        match=r"students.yaml: key 'auto_windows': .* on 5 windows, the data have 4",
    ):
        train_students(TrainingJob(windows_dir, settings, TRAIN, tmp_path, scores_dir=scores_dir))
    assert not list(tmp_path.iterdir())


def test_what_a_yaml_leaves_out_is_chosen_but_for_arms_without_a_teacher() -> None:
    settings = parse_settings("distillation: {mode: shared}", "students.yaml", StudentsSettings)
    rows = {arm: settings.distillation_of(settings.students[0], arm).rows for arm in settings.arms}
    assert rows == {"plain": "own", "distilled": "auto", "all_rows": "all"}
    assert settings.windows_to_choose_on == 4
    own = "distillation: {rows: own}"
    rates = parse_settings(own, "students.yaml", StudentsSettings)
    assert rates.windows_to_choose_on == 4
    assert rates.table_learning_rates == (0.1, 0.03)
    nothing = f"{own}\ntable_learning_rate: 0.05"
    given = parse_settings(nothing, "students.yaml", StudentsSettings)
    assert (given.windows_to_choose_on, given.table_learning_rates) == (0, (0.05,))
