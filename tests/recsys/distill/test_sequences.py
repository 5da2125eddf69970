"""Teacher, scores and students whose models pool a click history by attention, from a generated
stream to exports."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.loader import WindowReader
from recsys.data.settings import ClickHistorySettings, DataSettings, load_dataset
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.scoring import score_windows
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import TrainingJob
from recsys.models.settings import ModelSettings
from recsys.serving.predictor import Predictor
from recsys.training.settings import TrainSettings

PARAMS = Path(__file__).parents[3] / "params"
HISTORY = {"target": "ad_id", "length": 4, "shares_table": True}
SHAPE = {"embedding_dimension": 4, "dense_layers": [8], "over_layers": [8]}
TEACHER_MODEL = ModelSettings.model_validate(
    SHAPE
    | {
        "architecture": "wukong",
        "wukong": {"factorized": 2, "compressed": 2, "rank": 2, "widths": [8]},
    }
    | {"sequences": {"history": HISTORY | {"heads": 2}}}
)
STUDENT_MODEL = ModelSettings.model_validate(
    SHAPE | {"sequences": {"history": HISTORY | {"attention": "activation_unit", "widths": [4]}}}
)
TRAIN = TrainSettings(world_size=1, global_batch_size=256, sharding="table_wise", memory_gb=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    for name in ("teacher", "scores", "students"):
        (folder / name).mkdir()
    data = load_settings(PARAMS / "data.yaml", DataSettings)
    dataset = load_dataset(data, PARAMS / "datasets")
    assert dataset.synthetic is not None
    history = ClickHistorySettings(length=6, strength=2.0, dimension=4)
    small = {"rows": 3_000, "windows": 3, "users": 30, "ads": 20, "history": history}
    dataset = dataset.model_copy(update={"synthetic": dataset.synthetic.model_copy(update=small)})
    ingest(data, dataset, folder / "windows", folder / "oracle")
    teacher = TeacherSettings(
        model=TEACHER_MODEL, table_learning_rate=None, hold_back_ne_increase=10.0
    )
    train_teacher(TrainingJob(folder / "windows", teacher, TRAIN, folder / "teacher"))
    score_windows(
        folder / "windows",
        None,
        folder / "teacher",
        teacher,
        AugmentSettings(),
        TRAIN,
        folder / "scores",
    )
    students = StudentsSettings(
        model=STUDENT_MODEL,
        table_learning_rate=None,
        seeds=[1],
        students=[StudentSettings(name="feed", domain="feed")],
        distillation=DistillationSettings(mode="auxiliary", head_layers=[8]),
        arms={
            "plain": DistillationSettings(mode="none"),
            "distilled": DistillationSettings(),
            "peer": DistillationSettings(mode="co_distillation", peer_model=TEACHER_MODEL),
        },
    )
    train_students(
        TrainingJob(
            folder / "windows", students, TRAIN, folder / "students", scores_dir=folder / "scores"
        )
    )
    return folder


def test_each_example_of_the_stream_is_scored_by_the_teacher(root: Path) -> None:
    windows = WindowReader(root / "windows").windows
    for window in windows[1:]:
        scores = pl.read_parquet(root / "scores" / window.name / "*.parquet")
        assert scores.height == window.rows and scores["logit"].is_finite().all()


@pytest.mark.parametrize("arm", ["plain", "distilled", "peer"])
def test_a_served_student_reads_the_history(root: Path, arm: str) -> None:
    predictor = Predictor.load(root / "students" / "feed" / arm / "export")
    described = json.loads((root / "students/feed" / arm / "export/model.json").read_text())
    assert described["sequences"] == {
        name: one.length for name, one in STUDENT_MODEL.sequences.items()
    }
    frame = pl.read_parquet(root / "windows" / "*" / "part-*.parquet").filter(pl.col("domain") == 0)
    empty = pl.lit([], dtype=pl.List(pl.Int64)).alias("history")
    known = predictor.predict_encoded(frame)
    unknown = predictor.predict_encoded(frame.with_columns(empty))
    reads = (frame["history"].list.len() > 0).to_numpy()
    assert 0.2 < reads.mean() < 1.0
    assert np.array_equal(known[~reads], unknown[~reads])
    assert (known[reads] != unknown[reads]).mean() > 0.9
