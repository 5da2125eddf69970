"""A teacher that predicts worse than its student teaches it nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from recsys.data.loader import WindowReader
from recsys.distill.distillation_settings import overlaid
from recsys.distill.score_log import SCORE_SCHEMA, ScoreLog
from recsys.distill.students import train_students
from recsys.distill.teacher_gate import GatedScores, in_words
from recsys.distill.training_job import TrainingJob
from tests.support.files import contents
from tests.support.killing import kill
from tests.support.student_runs import run, run_and_die
from tests.support.toy_stream import STUDENTS, TRAIN, WINDOWS

GATED = STUDENTS.model_copy(
    update={
        "distillation": overlaid(
            STUDENTS.distillation, type(STUDENTS.distillation)(gate_windows=2, gate_deviations=2.0)
        )
    }
)


@pytest.fixture
def predicted(windows_dir: Path, tmp_path: Path) -> Path:
    """A student's predictions: a logit of 0 for every example of its domain."""
    for window in WINDOWS:
        examples = pl.read_parquet(windows_dir / window.name / "part-00000.parquet")
        (tmp_path / "predictions").mkdir(exist_ok=True)
        examples.filter(pl.col("domain") == 1).with_columns(
            logit=pl.lit(0.0, dtype=pl.Float32)
        ).write_parquet(tmp_path / "predictions" / f"{window.name}.parquet")
    return tmp_path


def score_log(windows_dir: Path, folder: Path, logit: Callable[[str], pl.Expr]) -> ScoreLog:
    """A log of every window but the first; ``logit`` of a window's name."""
    folder.mkdir()
    for index, window in enumerate(WINDOWS):
        examples = pl.read_parquet(windows_dir / window.name / "part-00000.parquet")
        scores = examples.select(
            "example_id",
            logit=logit(window.name).cast(pl.Float32),
            snapshot=pl.lit("w0"),
            high_water_mark=pl.lit(WINDOWS[0].end_ms),
            staleness_ms=pl.lit(0, dtype=pl.Int64),
        ).cast(SCORE_SCHEMA)  # type: ignore[arg-type]
        scores.head(scores.height if index else 0).write_parquet(folder / f"{window.name}.parquet")
    return ScoreLog(folder)


def right(_: str) -> pl.Expr:
    return 2.0 * pl.col("label") - 1.0


def wrong(_: str) -> pl.Expr:
    return 1.0 - 2.0 * pl.col("label")


def gate(log: ScoreLog, windows_dir: Path, output_dir: Path, deviations: float = 2.0):
    return GatedScores(log, WindowReader(windows_dir), output_dir, 2, deviations)


def test_a_better_teacher_teaches_in_every_window(windows_dir: Path, predicted: Path) -> None:
    found = gate(score_log(windows_dir, predicted / "log", right), windows_dir, predicted).report()
    assert [one["teaches"] for one in found] == [True] * 4
    assert in_words(found) == ""


def test_a_worse_one_teaches_nothing_once_that_is_known(windows_dir: Path, predicted: Path) -> None:
    gated = gate(score_log(windows_dir, predicted / "log", wrong), windows_dir, predicted)
    found = gated.report()
    # The first window has no scores, so the second is judged by nothing
    assert [one["teaches"] for one in found] == [True, True, False, False]
    assert found[2]["teacher"] == pytest.approx(1.3133, abs=1e-4)  # log(1 + e)
    assert found[2]["student"] == pytest.approx(0.6931, abs=1e-4)
    assert "before 2 of 4 windows and taught it nothing there (before w3" in in_words(found)
    frame = pl.read_parquet(windows_dir / "w2/part-00000.parquet")
    assert gated.join(frame, WINDOWS[2])["score"].null_count() == frame.height
    assert gated.join(frame, WINDOWS[2])["staleness_ms"].null_count() == frame.height
    frame = pl.read_parquet(windows_dir / "w1/part-00000.parquet")
    assert gated.join(frame, WINDOWS[1])["score"].null_count() == 0


def test_only_labels_known_at_a_windows_start_judge_its_scores(
    windows_dir: Path, predicted: Path
) -> None:
    found = gate(score_log(windows_dir, predicted / "log", wrong), windows_dir, predicted).report()
    parts = [pl.read_parquet(windows_dir / f"{name}/part-00000.parquet") for name in ("w1", "w2")]
    own = pl.concat(parts).filter(
        (pl.col("domain") == 1) & (pl.col("label_time") < WINDOWS[3].start_ms)
    )
    assert found[3]["rows"] == own.height < 300  # half of 600 rows are of the domain


def test_a_teacher_is_judged_by_the_last_windows_alone(windows_dir: Path, predicted: Path) -> None:
    def better_later(name: str) -> pl.Expr:
        return wrong(name) if name == "w1" else right(name)

    log = score_log(windows_dir, predicted / "log", better_later)
    found = GatedScores(log, WindowReader(windows_dir), predicted, 1, 2.0).report()
    assert [one["teaches"] for one in found] == [True, True, False, True]


def test_what_may_be_chance_shuts_nothing(windows_dir: Path, predicted: Path) -> None:
    def slightly_worse(_: str) -> pl.Expr:
        noise = pl.col("example_id").hash(7) % 2
        return (noise.cast(pl.Int8) * 2 - 1) * 0.5  # a coin's logit instead of 0

    log = score_log(windows_dir, predicted / "log", slightly_worse)
    strict, lenient = (
        gate(log, windows_dir, predicted, deviations).report()[3] for deviations in (0.0, 20.0)
    )
    assert strict["teacher"] > strict["student"]
    assert (strict["teaches"], lenient["teaches"]) == (False, True)


def test_a_student_is_trained_without_the_scores_and_says_so(
    windows_dir: Path, scores_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The small stream's scores are noise. A killed run ends with the same bytes."""
    whole = tmp_path / "whole"
    whole.mkdir()
    train_students(TrainingJob(windows_dir, GATED, TRAIN, whole, scores_dir=scores_dir))
    said = json.loads((whole / "one/distilled/seed-1/gate.json").read_text())["windows"]
    assert [one["teaches"] for one in said][2:] == [False, False]
    assert "one/distilled/seed-1: the teacher was worse than the student" in capfd.readouterr().err
    history = json.loads((whole / "one/distilled/seed-1/metrics.json").read_text())["windows"]
    assert [row["missing_scores"] for row in history][3] > 0.5
    assert not (whole / "one/plain/seed-1/gate.json").exists()
    kill(run_and_die, windows_dir, scores_dir, GATED, 9, tmp_path)
    run(windows_dir, scores_dir, GATED, tmp_path)
    assert contents(tmp_path / "output") == contents(whole)
