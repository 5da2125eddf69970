"""A student that learns other domains' rows: what it minimises, what it predicts and serves."""

import math
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recsys.config import InputError, parse_settings
from recsys.data.loader import Batch, WindowReader
from recsys.data.schema import Schema
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.heads import DISTILLATION
from recsys.distill.losses import DistillationLoss
from recsys.distill.score_log import ScoreLog
from recsys.distill.snapshots import LookAheadError
from recsys.distill.student_checks import check_students_alone
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.training_job import TrainingJob
from recsys.models.factory import build_ranker
from recsys.models.ranker import SERVING
from recsys.progress import RowProgress
from recsys.training.engine import Engine
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings
from recsys.validation.progressive import DataView, predict_then_train
from tests.support.files import contents
from tests.support.killing import kill
from tests.support.student_runs import run, run_and_die
from tests.support.toy_stream import MODEL, STUDENTS, TRAIN, WINDOWS

ARMS = {
    "plain": DistillationSettings(mode="none"),
    "distilled": DistillationSettings(),
    "elsewhere": DistillationSettings(rows="scores_elsewhere"),
    "all": DistillationSettings(rows="all"),
    "all_rows": DistillationSettings(mode="none", rows="all"),
}
SETTINGS = STUDENTS.model_copy(update={"arms": ARMS})


def predictions(students_dir: Path, arm: str, window: str) -> pl.DataFrame:
    return pl.read_parquet(students_dir / f"one/{arm}/seed-1/predictions/{window}.parquet")


def test_every_arm_predicts_its_own_domains_rows_and_no_others(students_dir: Path) -> None:
    for window in WINDOWS:
        plain = predictions(students_dir, "plain", window.name)
        assert plain["domain"].unique().to_list() == [1]
        for arm in ARMS:
            found = predictions(students_dir, arm, window.name)
            assert found.drop("logit").equals(plain.drop("logit"))


def test_every_arm_is_served_alike(students_dir: Path) -> None:
    """The same description, and weights of the same names and shapes, with other values."""
    exports = [students_dir / "one" / arm / "export" for arm in ARMS]
    assert len({(folder / "model.json").read_bytes() for folder in exports}) == 1
    weights = [load_file(folder / "weights.safetensors") for folder in exports]
    shapes = [{name: value.shape for name, value in one.items()} for one in weights]
    assert all(one == shapes[0] for one in shapes)
    assert len({(folder / "weights.safetensors").read_bytes() for folder in exports}) == len(ARMS)


def test_rows_without_a_score_teach_nothing(students_dir: Path) -> None:
    """No example of the first window has a score: what trains on it is as on its own rows alone."""
    for window, is_same in (("w1", True), ("w2", False)):
        found, own = (predictions(students_dir, a, window) for a in ("elsewhere", "distilled"))
        assert found.equals(own) == is_same


def train_on_everything(windows_dir: Path, folder: Path) -> None:
    reader = WindowReader(windows_dir)
    ranker = build_ranker(reader.schema, MODEL, None, 1, table_device="meta")
    engine = Engine(ranker, TRAIN, 1)
    with RowProgress("test", 1, enabled=False) as progress:
        data = DataView(reader, TRAIN.global_batch_size)
        predict_then_train(engine, engine.serving_loss, data, folder, progress)
    torch.save(engine.gather_state(), folder / "state.pt")


def test_all_rows_without_a_teacher_is_one_model_of_every_domain(
    students_dir: Path, windows_dir: Path, tmp_path: Path
) -> None:
    launch(train_on_everything, (windows_dir, tmp_path), TRAIN)
    expected = torch.load(tmp_path / "state.pt")
    found = load_file(students_dir / "one/all_rows/export/weights.safetensors")
    features = [one.name for one in WindowReader(windows_dir).schema.categorical]
    tables = [expected.pop(f"embeddings.embedding_bags.table_{name}.weight") for name in features]
    expected["tables"] = torch.cat(tables)
    assert found.keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in found.items())


def slow_loss(batch: Batch, logit: float, soft: float, weight: float, row: int) -> float:
    """The loss of one example, in words: its label's if it has one, its score's if it has one."""

    def entropy(at: float, target: float) -> float:
        p = 1.0 / (1.0 + math.exp(-at))
        return -target * math.log(p) - (1.0 - target) * math.log(1.0 - p)

    label, score = batch.label[row].item(), batch.score[row].item()
    loss = 0.0 if math.isnan(label) else entropy(logit, label)
    if not math.isnan(score):
        loss += weight * entropy(soft, 1.0 / (1.0 + math.exp(-score)))
    return loss


def test_the_loss_is_the_labels_of_its_domain_and_the_scores_of_all(
    windows_dir: Path, scores_dir: Path
) -> None:
    reader = WindowReader(windows_dir)
    view = partial(reader.label_batches, batch_size=64, rank=0, world_size=1, domain=1)
    loss_of = DistillationLoss(DistillationSettings(loss_weight=0.7))
    terms = {"label": 0, "score": 0}
    for window in WINDOWS[:3]:
        for batch in view(window, scores=ScoreLog(scores_dir), rows="scores_elsewhere"):
            size = len(batch.label)
            outputs = {SERVING: torch.linspace(-2, 2, size), DISTILLATION: torch.ones(size) * 0.3}
            found = loss_of(outputs, batch)
            expected = [
                slow_loss(batch, outputs[SERVING][row].item(), 0.3, 0.7, row) for row in range(size)
            ]
            torch.testing.assert_close(found, torch.tensor(expected))
            terms["label"] += int(torch.isfinite(batch.label).sum())
            terms["score"] += int((torch.isnan(batch.label) & torch.isfinite(batch.score)).sum())
    assert min(terms.values()) > 100


def test_a_score_elsewhere_that_knows_its_examples_time_is_look_ahead(
    windows_dir: Path, scores_dir: Path, tmp_path: Path
) -> None:
    for path in scores_dir.glob("*.parquet"):
        frame = pl.read_parquet(path)
        ahead = pl.lit(path.stem == "w2") & (pl.col("example_id") % 2 == 0)  # domain a alone
        mark = pl.when(ahead).then(WINDOWS[3].end_ms).otherwise(pl.col("high_water_mark"))
        frame.with_columns(high_water_mark=mark).write_parquet(tmp_path / path.name)
    reader = WindowReader(windows_dir)
    view = partial(reader.label_batches, WINDOWS[2], 64, 0, 1, 1, ScoreLog(tmp_path))
    assert list(view(rows="own"))
    with pytest.raises(LookAheadError, match="whose high-water mark"):
        list(view(rows="scores_elsewhere"))


KILLED = SETTINGS.model_copy(
    update={
        "arms": {name: ARMS[name] for name in ("plain", "elsewhere", "all_rows")},
        "checkpoint_every_batches": 2,
    }
)


def test_killed_students_that_see_all_rows_end_with_the_same_bytes(
    windows_dir: Path, scores_dir: Path, students_dir: Path, tmp_path: Path
) -> None:
    for steps in (16, 12):
        kill(run_and_die, windows_dir, scores_dir, KILLED, steps, tmp_path)
    run(windows_dir, scores_dir, KILLED, tmp_path)
    written, undisturbed = contents(tmp_path / "output"), contents(students_dir)
    assert len(written) == 37
    assert all(undisturbed[name] == value for name, value in written.items())


@pytest.mark.slow
def test_rows_are_the_same_on_several_ranks(
    windows_dir: Path, scores_dir: Path, students_dir: Path, tmp_path: Path
) -> None:
    train = TrainSettings.model_validate(TRAIN.model_dump() | {"world_size": 2})
    train_students(TrainingJob(windows_dir, SETTINGS, train, tmp_path, scores_dir=scores_dir))
    for arm in ("elsewhere", "all", "all_rows"):
        alone, both = (predictions(folder, arm, "w3") for folder in (students_dir, tmp_path))
        assert (alone["logit"] - both["logit"]).abs().max() < 1e-4  # type: ignore[operator]


def parsed(text: str) -> StudentsSettings:
    return parse_settings(text, "students.yaml", StudentsSettings)


def test_plain_keeps_its_own_rows_unless_the_arm_says_otherwise() -> None:
    settings = parsed(
        "distillation: {rows: all}\n"
        "students: [{name: a, domain: a}, {name: b, domain: b, distillation: {rows: own}}]\n"
        "arms: {plain: {mode: none}, distilled: {}, all_rows: {mode: none, rows: all}}\n"
    )
    rows = {
        (student.name, arm): settings.distillation_of(student, arm).rows
        for student in settings.students
        for arm in settings.arms
    }
    own, wide = dict.fromkeys([("a", "plain"), ("b", "plain"), ("b", "distilled")], "own"), "all"
    assert rows == own | {
        ("a", "distilled"): wide,
        ("a", "all_rows"): wide,
        ("b", "all_rows"): wide,
    }


@pytest.mark.parametrize("mode", ["none", "co_distillation"])
def test_rows_without_labels_need_a_teachers_scores(mode: str, windows_dir: Path) -> None:
    settings = parsed(
        "arms:\n  plain: {mode: none}\n"
        f"  wide: {{mode: {mode}, rows: scores_elsewhere, peer_model: {{cross_rank: 4}}}}\n"
    )
    with pytest.raises(InputError) as error:
        check_students_alone(settings)
    assert str(error.value) == (
        "students.yaml: key 'distillation.rows': scores_elsewhere needs a teacher's scores, and "
        f"arm 'wide' of student 'feed' has mode {mode}, which reads none; set own or all"
    )
    assert Schema.load(windows_dir).domains  # and nothing was read of the data


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(
        InputError, match=r"'own', 'scores_elsewhere', 'all' or 'auto', got 'everything'"
    ):
        parsed("distillation: {rows: everything}")
