"""A killed students run goes on at the student and window it was at, and ends with an undisturbed run's bytes."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.distill import ranks, students
from recsys.distill.scoring import SCORE_SCHEMA
from recsys.distill.students import train_students
from recsys.training.engine import Engine
from recsys.training.settings import TrainSettings
from tests.recsys.distill.test_pipeline import STUDENTS, TRAIN, WINDOWS, windows_dir  # noqa: F401
from tests.recsys.distill.test_resume import contents, die_after, kill

STEPS = 10  # of one student: its known labels, in batches of a window


def settings_with(every_batches: int | None) -> students.StudentsSettings:
    return STUDENTS.model_copy(update={"seeds": [1, 2], "checkpoint_every_batches": every_batches})


@pytest.fixture(scope="module")
def scores_dir(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A score for every example of every window but the first."""
    folder = tmp_path_factory.mktemp("scores")
    for index, window in enumerate(WINDOWS):
        examples = pl.read_parquet(windows_dir / window.name / "part-00000.parquet", columns=["example_id"])
        scores = examples.select(
            "example_id",
            logit=(pl.col("example_id") % 7 - 3).cast(pl.Float32),
            snapshot=pl.lit("w0"),
            high_water_mark=pl.lit(WINDOWS[0].end_ms),
            staleness_ms=pl.lit(0, dtype=pl.Int64),
        ).cast(SCORE_SCHEMA)  # type: ignore[arg-type]
        scores.head(scores.height if index else 0).write_parquet(folder / f"{window.name}.parquet")
    return folder


def run(windows: Path, scores: Path, train: TrainSettings, every_batches: int | None, folder: Path) -> None:
    output = folder / "output"
    output.mkdir(parents=True, exist_ok=True)
    train_students(windows, scores, settings_with(every_batches), train, output, folder / "resume")


def run_and_die(windows: Path, scores: Path, every_batches: int | None, steps: int, folder: Path) -> None:
    die_after(steps)
    run(windows, scores, TRAIN, every_batches, folder)


@pytest.fixture(scope="module")
def undisturbed(
    windows_dir: Path,  # noqa: F811
    scores_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train_students(windows_dir, scores_dir, settings_with(None), TRAIN, folder)
    return contents(folder)


@pytest.mark.parametrize(("every_batches", "kills"), [(None, [3, 14, 13]), (2, [4, 12, 16])])
def test_killed_run_ends_with_the_same_bytes(
    every_batches: int | None,
    kills: list[int],
    windows_dir: Path,  # noqa: F811
    scores_dir: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for steps in kills:
        kill(run_and_die, windows_dir, scores_dir, every_batches, steps, tmp_path)
        assert contents(tmp_path / "output") == {}
    taken, train_step = [], Engine.train_step
    monkeypatch.setattr(Engine, "train_step", lambda *arguments: taken.append(1) or train_step(*arguments))
    run(windows_dir, scores_dir, TRAIN, every_batches, tmp_path)
    assert len(taken) < 3 * STEPS  # of the four students' steps: at least one was not trained again
    assert contents(tmp_path / "output") == undisturbed


def train_rank_that_dies_once(*arguments: Any) -> Any:
    """:func:`students._train_rank`; the first time, rank 1 kills itself in the second student."""
    killed = arguments[-1].folder / "killed.txt"
    if ranks.rank() == 1 and not killed.exists():
        killed.touch()
        die_after(15)
    return students._train_rank(*arguments)


@pytest.mark.slow
def test_lost_rank_restarts_the_group_and_ends_with_the_same_bytes(
    windows_dir: Path,  # noqa: F811
    scores_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = TRAIN.model_copy(update={"world_size": 2, "max_restarts": 1})
    run(windows_dir, scores_dir, train, None, tmp_path / "calm")
    monkeypatch.setattr(students, "_train_rank", train_rank_that_dies_once)
    run(windows_dir, scores_dir, train, None, tmp_path / "lost")
    assert list((tmp_path / "lost" / "resume").rglob("killed.txt"))
    assert contents(tmp_path / "lost" / "output") == contents(tmp_path / "calm" / "output")


def test_ended_student_is_not_trained_again_and_keeps_no_checkpoints(
    windows_dir: Path,  # noqa: F811
    scores_dir: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(windows_dir, scores_dir, TRAIN, None, tmp_path)
    assert not list((tmp_path / "resume").rglob("*.distcp"))
    monkeypatch.delattr(Engine, "train_step")
    again = tmp_path / "again"
    again.mkdir()
    train_students(windows_dir, scores_dir, settings_with(None), TRAIN, again, tmp_path / "resume")
    assert contents(again) == undisturbed
