"""Teacher, scores and students on a small stream, on one rank in this process."""

from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.scoring import score_windows
from recsys.distill.snapshots import LookAheadError, list_snapshots
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.serving.predictor import Predictor
from tests.support.toy_stream import HOUR, ROWS, STUDENTS, TEACHER, TRAIN, WINDOWS


def run(windows_dir: Path, root: Path) -> None:
    for name in ("teacher", "scores", "students"):
        (root / name).mkdir()
    train_teacher(TrainingJob(windows_dir, TEACHER, TRAIN, root / "teacher"))
    augment = AugmentSettings(batch_size=128, max_staleness_hours=None)
    score_windows(windows_dir, None, root / "teacher", TEACHER, augment, TRAIN, root / "scores")
    train_students(
        TrainingJob(windows_dir, STUDENTS, TRAIN, root / "students", scores_dir=root / "scores")
    )


@pytest.fixture(scope="module")
def root(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(windows_dir, folder)
    return folder


def test_each_example_is_scored_once_by_a_snapshot_of_its_past(root: Path) -> None:
    assert [s.window for s in list_snapshots(root / "teacher" / "snapshots")] == [
        "w0",
        "w1",
        "w2",
        "w3",
    ]
    assert not list((root / "scores" / "w0").glob("*.parquet"))
    for index, window in enumerate(WINDOWS[1:], start=1):
        scores = pl.read_parquet(root / "scores" / window.name / "*.parquet")
        assert scores["example_id"].to_list() == list(range(index * ROWS, (index + 1) * ROWS))
        assert scores["high_water_mark"].unique().to_list() == [window.start_ms]
        assert scores["staleness_ms"].min() == 0


def test_score_is_the_teachers_own_next_prediction(root: Path) -> None:
    """A snapshot after window t predicts window t+1 as the teacher itself did: save and load lose
    nothing."""
    scores = pl.read_parquet(root / "scores" / "w2" / "*.parquet").sort("example_id")
    own = pl.read_parquet(root / "teacher" / "predictions" / "w2.parquet").sort("example_id")
    assert scores["logit"].to_numpy() == pytest.approx(own["logit"].to_numpy(), abs=1e-5)


def test_students_see_their_domain_and_arms_start_alike(root: Path) -> None:
    frames = {
        (arm, window): pl.read_parquet(
            root / f"students/one/{arm}/seed-1/predictions/{window}.parquet"
        )
        for arm in ("plain", "distilled")
        for window in ("w0", "w3")
    }
    assert all(frame["domain"].unique().to_list() == [1] for frame in frames.values())
    assert frames["plain", "w0"].equals(frames["distilled", "w0"])
    assert not frames["plain", "w3"]["logit"].equals(frames["distilled", "w3"]["logit"])


def test_export_holds_the_serving_head_only(root: Path, windows_dir: Path) -> None:
    predictor = Predictor.load(root / "students/one/distilled/export")
    weights = load_file(root / "students/one/distilled/export/weights.safetensors")
    assert weights and not any("distillation" in name for name in weights)
    frame = pl.read_parquet(windows_dir / "w3" / "part-00000.parquet").filter(pl.col("domain") == 1)
    values = predictor.predict(frame)
    assert ((values > 0) & (values < 1)).all()


def test_rerun_writes_the_same_bytes(root: Path, windows_dir: Path, tmp_path: Path) -> None:
    run(windows_dir, tmp_path)
    written = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert written == sorted(
        path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert [p for p in written if (root / p).read_bytes() != (tmp_path / p).read_bytes()] == []


def test_stale_examples_stay_without_a_score(root: Path, windows_dir: Path, tmp_path: Path) -> None:
    augment = AugmentSettings(batch_size=128, max_staleness_hours=0.5)
    report = score_windows(windows_dir, None, root / "teacher", TEACHER, augment, TRAIN, tmp_path)
    staleness = pl.read_parquet(tmp_path / "*" / "*.parquet")["staleness_ms"]
    assert staleness.max() == HOUR // 2
    assert report.scored == len(staleness) == report.rows - report.missing


def test_altered_snapshot_is_refused(root: Path, windows_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "w2"
    folder.mkdir(parents=True)
    text = (root / "teacher/snapshots/w2/snapshot.json").read_text()
    (folder / "snapshot.json").write_text(
        text.replace(str(WINDOWS[2].end_ms), str(WINDOWS[0].end_ms))
    )
    with pytest.raises(LookAheadError):
        score_windows(
            windows_dir,
            None,
            tmp_path,
            TEACHER,
            AugmentSettings(batch_size=8, max_staleness_hours=None),
            TRAIN,
            tmp_path,
        )
