"""Candidates are scored as the log is, and students learn their scores and nothing else of them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.loader import WindowReader
from recsys.data.schema import CANDIDATES_DIR, Schema, Window
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.online_stream import StreamJob, advance
from recsys.distill.score_log import ScoreLog
from recsys.distill.scoring import ScoringJob, score_windows
from recsys.distill.snapshots import SNAPSHOTS_DIR, LookAheadError, list_snapshots
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.training.settings import TrainSettings
from tests.support.files import contents
from tests.support.killing import kill
from tests.support.student_runs import run, run_and_die
from tests.support.toy_stream import HOUR, STUDENTS, TEACHER, TRAIN, WINDOWS

ROWS, FIRST = 90, 1 << 62
AUGMENT = AugmentSettings(batch_size=32, segment_rows=64)
ARMS = {
    "plain": DistillationSettings(mode="none"),
    "without": DistillationSettings(candidates=False),
    "with": DistillationSettings(),
    "wide": DistillationSettings(rows="scores_elsewhere"),
}
SETTINGS = STUDENTS.model_copy(update={"arms": ARMS, "checkpoint_every_batches": 2})


def candidates(window: Window) -> pl.DataFrame:
    row = pl.int_range(ROWS, dtype=pl.Int64)
    time = window.start_ms + row * (HOUR // ROWS)
    return pl.select(
        example_id=FIRST + row + window.start_ms,
        event_time=time,
        label_time=time,
        domain=(row % 2).cast(pl.Int32),
        group=row,
        price=(row * 11 % 17).cast(pl.Float32),
        user=row * 29 % 40,
        ad=row * 13 % 20,
        label=pl.lit(None, dtype=pl.Float32),
    )


@pytest.fixture(scope="module")
def data_dir(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy stream with candidates in all windows but the third."""
    folder = tmp_path_factory.mktemp("data") / "windows"
    shutil.copytree(windows_dir, folder)
    own = folder / CANDIDATES_DIR
    own.mkdir()
    sizes = [0 if window.name == "w2" else ROWS for window in WINDOWS]
    windows = [replace(one, rows=rows) for one, rows in zip(WINDOWS, sizes, strict=True)]
    replace(Schema.load(folder), windows=windows).save(own)
    for window in windows:
        (own / window.name).mkdir()
        candidates(window).head(window.rows).write_parquet(own / window.name / "part-00000.parquet")
    return folder


def score(windows: Path, teacher: Path, output: Path) -> None:
    score_windows(windows, None, teacher, TEACHER, AUGMENT, TRAIN, output)


@pytest.fixture(scope="module")
def scores_dir(data_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    score(data_dir, teacher_dir, folder)
    score(data_dir / CANDIDATES_DIR, teacher_dir, folder / CANDIDATES_DIR)
    return folder


@pytest.fixture(scope="module")
def students_dir(
    data_dir: Path, scores_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("students")
    run(data_dir, scores_dir, SETTINGS, folder)
    return folder / "output"


def views(data_dir: Path, scores_dir: Path) -> Iterator[tuple[Window, pl.DataFrame, pl.DataFrame]]:
    """Each window's examples for the second domain, without candidates and with them."""
    reader = WindowReader(data_dir)
    logs = ScoreLog(scores_dir), ScoreLog(scores_dir / CANDIDATES_DIR)
    for window in WINDOWS:
        without = reader.label_examples(window, 1, logs[0])
        yield window, without, reader.label_examples(window, 1, logs[0], candidates=logs[1])


def test_the_teacher_does_not_see_candidates(
    data_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    train_teacher(TrainingJob(data_dir, TEACHER, TRAIN, tmp_path))
    assert contents(tmp_path) == contents(teacher_dir)


def test_students_learn_the_scored_candidates_of_a_window_and_no_label_of_them(
    data_dir: Path, scores_dir: Path
) -> None:
    """The slow way: both tables put together by hand."""
    added = 0
    for window, without, both in views(data_dir, scores_dir):
        own = candidates(window).head(0 if window.name == "w2" else ROWS).filter(domain=1)
        log = ScoreLog(scores_dir / CANDIDATES_DIR).join(own, window).drop_nulls("score")
        log = log.with_columns(label=pl.lit(float("nan"), dtype=pl.Float32))
        byhand = pl.concat([without, log.select(without.columns)]).sort("label_time", "example_id")
        assert both.equals(byhand)
        added += both.height - without.height
    assert added == 2 * ROWS // 2  # the first window has no snapshot, the third no candidates


def test_a_student_with_candidates_is_the_one_trained_on_both_tables_put_together(
    data_dir: Path,
    scores_dir: Path,
    students_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit by bit: here a reader takes the examples from tables made by hand."""
    made = {window.name: both for window, _, both in views(data_dir, scores_dir)}
    for name, frame in made.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")

    def of_tables(self: WindowReader, window: Window, *_: object) -> pl.DataFrame:
        return pl.read_parquet(tmp_path / f"{window.name}.parquet")

    monkeypatch.setattr(WindowReader, "label_examples", of_tables)
    settings = SETTINGS.model_copy(
        update={"arms": {"plain": ARMS["plain"], "with": ARMS["without"]}, "side_by_side": False}
    )
    job = TrainingJob(data_dir, settings, TRAIN, tmp_path / "out", scores_dir=scores_dir)
    train_students(job)

    def of(folder: Path, arm: str, window: Window) -> pl.DataFrame:
        return pl.read_parquet(folder / f"one/{arm}/seed-1/predictions/{window.name}.parquet")

    for window in WINDOWS:
        found = of(students_dir, "with", window)
        assert found.equals(of(tmp_path / "out", "with", window))
        for arm in ("without", "wide"):  # all predict the log's rows alone
            assert of(students_dir, arm, window).drop("logit").equals(found.drop("logit"))
    assert not of(students_dir, "without", WINDOWS[-1]).equals(
        of(students_dir, "with", WINDOWS[-1])
    )


def test_without_candidates_students_are_those_of_a_log_without_them(
    windows_dir: Path, scores_dir: Path, students_dir: Path, tmp_path: Path
) -> None:
    scores = tmp_path / "scores"
    shutil.copytree(scores_dir, scores, ignore=shutil.ignore_patterns(CANDIDATES_DIR))
    (tmp_path / "run").mkdir()
    arms = {name: ARMS[name] for name in ("plain", "without")}
    run(windows_dir, scores, SETTINGS.model_copy(update={"arms": arms}), tmp_path / "run")
    undisturbed = contents(students_dir)
    written = contents(tmp_path / "run" / "output")
    assert "one/without/seed-1/predictions/w3.parquet" in map(str, written)
    for name, value in written.items():
        if "card" not in str(name):
            assert undisturbed[name] == value, name


def test_killed_students_with_candidates_end_with_the_same_bytes(
    data_dir: Path, scores_dir: Path, students_dir: Path, tmp_path: Path
) -> None:
    for steps in (16, 12):
        kill(run_and_die, data_dir, scores_dir, SETTINGS, steps, tmp_path)
    run(data_dir, scores_dir, SETTINGS, tmp_path)
    assert contents(tmp_path / "output") == contents(students_dir)


@pytest.mark.slow
def test_candidates_are_the_same_on_several_ranks(
    data_dir: Path, scores_dir: Path, students_dir: Path, tmp_path: Path
) -> None:
    train = TrainSettings.model_validate(TRAIN.model_dump() | {"world_size": 2})
    settings = SETTINGS.model_copy(update={"side_by_side": False})
    train_students(TrainingJob(data_dir, settings, train, tmp_path, scores_dir=scores_dir))
    name = "one/with/seed-1/predictions/w3.parquet"
    alone, both = (pl.read_parquet(folder / name) for folder in (students_dir, tmp_path))
    assert (alone["logit"] - both["logit"]).abs().max() < 1e-4  # type: ignore[operator]


def test_every_score_is_from_before_its_window(
    data_dir: Path, teacher_dir: Path, scores_dir: Path, tmp_path: Path
) -> None:
    log = ScoreLog(scores_dir / CANDIDATES_DIR)
    for window in WINDOWS:
        for segment in log.segments(window.name):
            marks = pl.read_parquet(segment)["high_water_mark"]
            assert (marks <= window.start_ms).all()
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    last = list_snapshots(tmp_path / "teacher" / SNAPSHOTS_DIR)[-1]
    path = tmp_path / "teacher" / SNAPSHOTS_DIR / last.name / "snapshot.json"
    text = path.read_text()
    path.write_text(text.replace(str(last.high_water_mark), str(WINDOWS[1].start_ms)))
    assert path.read_text() != text
    job = ScoringJob(
        data_dir / CANDIDATES_DIR, None, tmp_path / "teacher", TEACHER, AUGMENT, TRAIN, tmp_path
    )
    with pytest.raises(LookAheadError):
        score(job.windows_dir, job.teacher_dir, tmp_path / "log")


def test_a_stream_refuses_a_log_with_candidates(data_dir: Path, tmp_path: Path) -> None:
    job = StreamJob(
        data_dir, None, TEACHER, AugmentSettings(teacher="own"), SETTINGS, TRAIN, tmp_path / "work"
    )
    with pytest.raises(InputError, match="a stream does not score candidates") as refused:
        advance(job, tmp_path / "output")
    assert "\n" not in str(refused.value)
