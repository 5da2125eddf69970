"""Two tasks from the windows to the served students: scored once, each student with its own, on one
rank or two."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file

from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.schema import Schema
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings
from recsys.distill.online_stream import StreamJob, advance
from recsys.distill.scoring import score_windows
from recsys.distill.snapshots import list_snapshots
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.evaluation.report import evaluate
from recsys.evaluation.settings import EvaluateSettings
from recsys.models.ranker import log_odds
from recsys.serving.predictor import Predictor
from tests.support import toy_stream
from tests.support.files import digests
from tests.support.toy_stream import ROWS, TRAIN, WINDOWS

# Two ranks add up in another order than one; of heads that start at 0 Adam makes steps of roundoff
MODEL = toy_stream.MODEL.model_copy(update={"first_order": False})
TEACHER = toy_stream.TEACHER.model_copy(update={"model": MODEL})

pytestmark = pytest.mark.slow
TASKS = {"clicks": ["click"], "sales": ["conversion"], "shop": ["conversion", "click"]}
ARMS = {
    "plain": DistillationSettings(mode="none"),
    "distilled": DistillationSettings(),
    "single_head": DistillationSettings(mode="shared"),
    "map": DistillationSettings(mode="affine"),
    "adapter": DistillationSettings(
        mode="auxiliary_adapter", adapter=AdapterSettings(update="after")
    ),
    "peer": DistillationSettings(mode="co_distillation", peer_model=MODEL),
}
STUDENTS = StudentsSettings(
    model=MODEL,
    seeds=[1],
    students=[StudentSettings(name=name, domain="b", tasks=tasks) for name, tasks in TASKS.items()],
    distillation=DistillationSettings(head_layers=[8]),
    arms=ARMS,
)
SGD = TRAIN.model_copy(
    update={"dense_optimizer": "sgd", "dense_learning_rate": 0.1, "table_optimizer": "sgd"}
)
CLOSE = 1e-6


@pytest.fixture(scope="module")
def windows_of_two(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy windows with conversions, which only clicked examples have."""
    folder = tmp_path_factory.mktemp("two")
    Schema(
        "toy",
        ["price"],
        Schema.load(windows_dir).categorical,
        ["a", "b"],
        WINDOWS,
        0.25,
        {},
        ["click", "conversion"],
        [0.5],
    ).save(folder)
    Encoder.load(windows_dir).save(folder)
    for window in WINDOWS:
        (folder / window.name).mkdir()
        frame = pl.read_parquet(windows_dir / window.name / "part-00000.parquet")
        converted = (pl.col("example_id") * 7 % 10 < 5).cast(pl.Float32)
        conversion = pl.when(pl.col("label") == 1).then(converted)
        frame = frame.with_columns(label_conversion=conversion)
        frame.write_parquet(folder / window.name / "part-00000.parquet")
        probability = pl.when(pl.col("label") == 1).then(0.9).otherwise(0.1)
        truth = frame.select(
            "example_id", probability=probability, probability_conversion=0.3 + 0.4 * converted
        )
        (folder / "oracle").mkdir(exist_ok=True)
        truth.write_parquet(folder / "oracle" / f"{window.name}.parquet")
    return folder


def run(
    windows_dir: Path, root: Path, world_size: int, students: StudentsSettings = STUDENTS
) -> Path:
    train = SGD.model_copy(update={"world_size": world_size})
    for name in ("teacher", "scores", "students"):
        (root / name).mkdir()
    train_teacher(TrainingJob(windows_dir, TEACHER, train, root / "teacher"))
    score_windows(
        windows_dir,
        None,
        root / "teacher",
        TEACHER,
        AugmentSettings(batch_size=128),
        train,
        root / "scores",
    )
    train_students(
        TrainingJob(windows_dir, students, train, root / "students", scores_dir=root / "scores")
    )
    return root


@pytest.fixture(scope="module")
def root(windows_of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(windows_of_two, tmp_path_factory.mktemp("run"), 1)


def test_a_stream_of_two_tasks_has_the_batch_stages_bytes(
    root: Path, windows_of_two: Path, tmp_path: Path
) -> None:
    augment = AugmentSettings(teacher="own", batch_size=128)
    job = StreamJob(
        windows_of_two, None, TEACHER, augment, STUDENTS, SGD, tmp_path / "work", finished=True
    )
    advance(job, tmp_path / "output")
    names = [path.relative_to(root) for path in sorted(root.rglob("*.parquet"))]
    assert len(names) > 4 * len(WINDOWS)
    assert [
        str(name)
        for name in names
        if (tmp_path / "output" / name).read_bytes() != (root / name).read_bytes()
    ] == []


@pytest.mark.parametrize("unlabelled", [["w2"], ["w0", "w1", "w2", "w3"]], ids=["one", "all"])
def test_windows_without_any_label_of_a_task_train_and_are_reported(
    unlabelled: list[str], windows_of_two: Path, tmp_path: Path
) -> None:
    """As where conversions are not observed yet: batch stages and stream go through, with the same
    bytes."""
    windows, root = tmp_path / "windows", tmp_path / "run"
    shutil.copytree(windows_of_two, windows)
    for name in unlabelled:
        path = windows / name / "part-00000.parquet"
        pl.read_parquet(path).with_columns(label_conversion=pl.lit(None, pl.Float32)).write_parquet(
            path
        )
    root.mkdir()
    arms = {name: ARMS[name] for name in ("plain", "adapter")}
    students = STUDENTS.model_copy(update={"students": STUDENTS.students[1:], "arms": arms})
    run(windows, root, 1, students)
    measured = json.loads((root / "teacher" / "metrics.json").read_text())["windows"]
    assert [row["rows_conversion"] == 0 for row in measured] == [
        window.name in unlabelled for window in WINDOWS
    ]
    assert all(np.isfinite(row["ne"]) for row in measured)
    for path in root.rglob("predictions/*.parquet"):
        frame = pl.read_parquet(path)
        assert all(
            np.isfinite(frame[name].to_numpy()).all()
            for name in frame.columns
            if name.startswith("logit")
        )
    settings = EvaluateSettings(first_evaluation_window=1, bootstrap_samples=10)
    (tmp_path / "report").mkdir()
    evaluate(
        windows,
        windows / "oracle",
        root / "teacher",
        root / "students",
        settings,
        tmp_path / "report",
    )
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert (rows["sales"] == 0) == (len(unlabelled) == len(WINDOWS))
    augment = AugmentSettings(teacher="own", batch_size=128)
    job = StreamJob(
        windows, None, TEACHER, augment, students, SGD, tmp_path / "work", finished=True
    )
    advance(job, tmp_path / "output")
    for path in root.rglob("*.parquet"):
        assert (tmp_path / "output" / path.relative_to(root)).read_bytes() == path.read_bytes()


def logits(folder: Path, without: str = "none") -> pl.DataFrame:
    """Every logit of the predictions and records in ``folder``, by file, but of one folder in
    it."""
    every = sorted(folder.rglob("*.parquet"))
    names = [path for path in every if not path.is_relative_to(folder / without)]
    frames = [
        pl.read_parquet(path).select("example_id", pl.selectors.starts_with("logit"))
        for path in names
    ]
    labelled = [
        frame.with_columns(file=pl.lit(str(p.relative_to(folder))))
        for frame, p in zip(frames, names, strict=True)
    ]
    return pl.concat(labelled, how="diagonal")


def test_two_ranks_are_one(root: Path, windows_of_two: Path, tmp_path: Path) -> None:
    students = STUDENTS.model_copy(update={"students": STUDENTS.students[1:]})
    other = run(windows_of_two, tmp_path, 2, students)
    first, second = logits(root, "students/clicks"), logits(other)
    assert first["file"].equals(second["file"]) and first["example_id"].equals(second["example_id"])
    for name in ("logit", "logit_conversion"):
        assert first[name].is_null().equals(second[name].is_null())
        assert (first[name] - second[name]).abs().max() < CLOSE  # type: ignore[operator]


def test_one_record_per_example_serves_students_of_different_tasks(root: Path) -> None:
    scores = pl.read_parquet(root / "scores" / "*" / "*.parquet")
    assert scores["example_id"].to_list() == list(range(ROWS, len(WINDOWS) * ROWS))
    own = pl.read_parquet(root / "teacher" / "predictions" / "*.parquet")
    both = scores.join(own, on="example_id", suffix="_own")
    for name in ("logit", "logit_conversion"):
        np.testing.assert_allclose(both[name].to_numpy(), both[f"{name}_own"].to_numpy(), atol=1e-5)
    for student, tasks in TASKS.items():
        for arm in ("distilled", "single_head", "map"):
            windows = json.loads(
                (root / f"students/{student}/{arm}/seed-1/metrics.json").read_text()
            )["windows"]
            assert windows[-1]["missing_scores"] == 0
            assert ("ne_click" in windows[-1]) == (tasks == ["conversion", "click"])


def test_a_student_of_one_task_is_untouched_by_what_the_data_hold_besides(
    root: Path,
    windows_dir: Path,
    tmp_path: Path,
) -> None:
    """Its plain arm, trained on the same windows without conversions, writes the same bytes."""
    clicks = STUDENTS.model_copy(
        update={"students": STUDENTS.students[:1], "arms": {"plain": ARMS["plain"]}}
    )
    train_students(TrainingJob(windows_dir, clicks, SGD, tmp_path, scores_dir=root / "scores"))
    for window in WINDOWS:
        name = f"clicks/plain/seed-1/predictions/{window.name}.parquet"
        assert (tmp_path / name).read_bytes() == (root / "students" / name).read_bytes()


def test_teacher_measures_each_task_on_the_examples_that_have_its_label(
    root: Path, windows_of_two: Path
) -> None:
    rows = json.loads((root / "teacher" / "metrics.json").read_text())["windows"]
    snapshots = list_snapshots(root / "teacher" / "snapshots")
    for window, row, snapshot in zip(WINDOWS, rows, snapshots, strict=True):
        label = pl.read_parquet(windows_of_two / window.name / "part-00000.parquet")[
            "label_conversion"
        ]
        assert (row["rows"], row["rows_conversion"]) == (ROWS, ROWS - label.null_count())
        predicted = pl.read_parquet(root / "teacher" / "predictions" / f"{window.name}.parquet")
        assert predicted["label_conversion"].is_nan().sum() == label.null_count()
        known = predicted.filter(pl.col("label_conversion").is_not_nan())
        logit, target = known["logit_conversion"].to_numpy(), known["label_conversion"].to_numpy()
        loss = float(np.mean(np.logaddexp(0, logit.astype(float)) - logit * target))
        assert row["logloss_conversion"] == pytest.approx(loss, rel=1e-6)
        assert snapshot.ne == row["ne"]
        assert snapshot.metrics["ne_conversion"] == row["ne_conversion"]


def test_report_tells_tasks_apart(root: Path, windows_of_two: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(first_evaluation_window=1, bootstrap_samples=10)
    folders = windows_of_two, windows_of_two / "oracle", root / "teacher", root / "students"
    report = evaluate(*folders, settings, tmp_path)
    assert report.tasks == TASKS
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0].startswith("| student | task | metric | plain |")
    for student, tasks in TASKS.items():
        for task in tasks:
            assert any(line.startswith(f"| {student}: distilled | {task} | NE |") for line in table)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["tasks"] == TASKS
    assert set(values["students"]) == set(TASKS)
    shop = values["further_tasks"]["shop"]["click"]["distilled"]
    assert shop["ne"]["oracle"] == values["students"]["clicks"]["ne"]["oracle"]
    assert (
        shop["ne"]["teacher"]
        == values["students"]["clicks"]["ne"]["teacher"]
        != values["students"]["sales"]["ne"]["teacher"]
    )
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {
        "ne_shop.png",
        "ne_shop_click.png",
    }
    known = pl.concat(
        pl.read_parquet(windows_of_two / window.name / "part-00000.parquet").filter(
            pl.col("domain") == 1
        )
        for window in WINDOWS[1:]
    )["label_conversion"].drop_nulls()
    assert values["rows"] == {"clicks": 3 * ROWS // 2, "sales": len(known), "shop": len(known)}
    truth = [(label, 0.3 + 0.4 * label) for label in known]
    losses = [-np.log(p if label else 1 - p) for label, p in truth]
    assert values["students"]["sales"]["logloss"]["oracle"] == pytest.approx(
        np.mean(losses), rel=1e-6
    )


@pytest.mark.parametrize("arm", list(ARMS))
def test_served_student_gives_a_probability_per_task(
    arm: str, root: Path, windows_of_two: Path
) -> None:
    predictor = Predictor.load(root / "students/shop" / arm / "export")
    weights = [
        load_file(root / "students/shop" / name / "export/weights.safetensors")
        for name in (arm, "plain")
    ]
    shapes = [{name: value.shape for name, value in one.items()} for one in weights]
    assert shapes[0] == shapes[1]
    frame = pl.read_parquet(windows_of_two / "w3" / "part-00000.parquet").filter(
        pl.col("domain") == 1
    )
    found = predictor.predict_tasks(frame.drop("label", "label_time", "label_conversion"))
    assert list(found) == ["conversion", "click"]
    assert all(((p > 0) & (p < 1)).all() for p in found.values())
    assert not np.allclose(found["conversion"], found["click"])
    np.testing.assert_array_equal(predictor.predict(frame), found["conversion"])
    size = json.loads((root / "students/shop/size.json").read_text())
    common = json.loads((root / "students/size.json").read_text())
    assert size["dense_parameters"] - common["dense_parameters"] == MODEL.over_layers[-1] + 1


def test_first_prediction_of_a_student_is_about_its_tasks_base_rates(root: Path) -> None:
    """Before anything is learnt, a small seeded network moves the head's bias by little."""
    frame = pl.read_parquet(root / "students/shop/plain/seed-1/predictions/w0.parquet")
    assert frame["logit_conversion"].mean() == pytest.approx(log_odds(0.5), abs=0.5)
    assert frame["logit"].mean() == pytest.approx(log_odds(0.25), abs=0.5)


def test_a_teachers_weight_of_an_unknown_task_is_named(
    windows_of_two: Path, tmp_path: Path
) -> None:
    teacher = TEACHER.model_copy(update={"task_weights": {"cart": 2.0}})
    with pytest.raises(
        InputError, match=r"TeacherSettings: key 'task_weights.cart'.*tasks are: conversion"
    ):
        train_teacher(TrainingJob(windows_of_two, teacher, SGD, tmp_path))


def test_a_log_without_a_tasks_logits_is_named(
    root: Path, windows_of_two: Path, tmp_path: Path
) -> None:
    for window in WINDOWS:
        (tmp_path / window.name).mkdir()
        for path in (root / "scores" / window.name).iterdir():
            if path.suffix == ".parquet":
                pl.read_parquet(path).drop("logit_conversion").write_parquet(
                    tmp_path / window.name / path.name
                )
        facts = json.loads((root / "scores" / window.name / "window.json").read_text())
        facts["segments"] = digests(tmp_path / window.name)
        (tmp_path / window.name / "window.json").write_text(json.dumps(facts))
    sales = STUDENTS.model_copy(update={"students": [STUDENTS.students[1]]})
    with pytest.raises(InputError, match="no column 'logit_conversion'"):
        train_students(
            TrainingJob(windows_of_two, sales, SGD, tmp_path / "students", scores_dir=tmp_path)
        )
