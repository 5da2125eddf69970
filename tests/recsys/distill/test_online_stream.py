"""A stream's windows one at a time, all at once, or with kills in between: the bytes of the batch
stages."""

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.loader import WindowReader
from recsys.data.schema import Schema, Window
from recsys.distill import scoring
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.online_stream import StreamJob, advance
from recsys.distill.scoring import score_windows
from recsys.distill.snapshots import list_snapshots
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from recsys.training.engine import Engine
from recsys.training.resume import work_folder
from tests.support.files import contents
from tests.support.killing import die_after, kill
from tests.support.toy_stream import STUDENTS, TEACHER, TRAIN, WINDOWS

AUGMENT = AugmentSettings(teacher="own", batch_size=128)
NAMES = [window.name for window in WINDOWS]


@pytest.fixture(scope="module")
def batch(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the batch stages write over all windows."""
    root = tmp_path_factory.mktemp("batch")
    for name in ("teacher", "scores", "students"):
        (root / name).mkdir()
    train_teacher(TrainingJob(windows_dir, TEACHER, TRAIN, root / "teacher"))
    score_windows(windows_dir, None, root / "teacher", TEACHER, AUGMENT, TRAIN, root / "scores")
    train_students(
        TrainingJob(windows_dir, STUDENTS, TRAIN, root / "students", scores_dir=root / "scores")
    )
    return contents(root)


def job_of(arrived: Path, root: Path, finished: bool = False) -> StreamJob:
    return StreamJob(
        arrived, None, TEACHER, AUGMENT, STUDENTS, TRAIN, root / "work", finished=finished
    )


def arrive(source: Path, windows: list[Window], root: Path) -> Path:
    """Replace the arrived windows, as ingest does."""
    arrived = root / "arrived"
    shutil.rmtree(arrived, ignore_errors=True)
    arrived.mkdir(parents=True)
    replace(Schema.load(source), windows=windows).save(arrived)
    Encoder.load(source).save(arrived)
    for window in windows:
        shutil.copytree(source / window.name, arrived / window.name)
    return arrived


def advance_and_die(arrived: Path, root: Path, steps: int) -> None:
    die_after(steps)
    advance(job_of(arrived, root), root / "output")


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("predict", "finish_step"):
        monkeypatch.delattr(Engine, method)


def test_windows_one_at_a_time_are_taken_when_the_next_one_is_there_and_give_the_batch_bytes(
    windows_dir: Path,
    batch: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived = tmp_path
    for count in range(1, len(WINDOWS) + 1):
        arrived = arrive(windows_dir, WINDOWS[:count], tmp_path)
        done = advance(job_of(arrived, tmp_path), tmp_path / f"output-{count}")
        assert (done.before, done.new) == (
            NAMES[: max(count - 2, 0)],
            NAMES[max(count - 2, 0) : count - 1],
        )
    assert advance(job_of(arrived, tmp_path, finished=True), tmp_path / "output").new == NAMES[-1:]
    assert contents(tmp_path / "output") == batch
    forbid_work(monkeypatch)
    assert advance(job_of(arrived, tmp_path, finished=True), tmp_path / "again").new == []
    assert contents(tmp_path / "again") == batch


def test_windows_at_once_bound_what_a_call_takes_and_one_snapshots_weights_are_enough(
    windows_dir: Path, batch: dict[str, bytes], tmp_path: Path
) -> None:
    teacher = TEACHER.model_copy(update={"keep_snapshots": 1})
    job = replace(job_of(windows_dir, tmp_path, finished=True), windows_at_once=3, teacher=teacher)
    assert [advance(job, tmp_path / f"output-{call}").new for call in range(3)] == [
        NAMES[:3],
        NAMES[3:],
        [],
    ]
    gone = batch.keys() - contents(tmp_path / "output-2").keys()
    assert gone
    assert all("weights" in Path(path).parts for path in gone)
    left = {path: data for path, data in batch.items() if path not in gone}
    assert contents(tmp_path / "output-2") == left
    assert len({Path(path).parts[2] for path in left if "weights" in Path(path).parts}) == 1


def test_a_call_counts_and_hashes_nothing_of_windows_that_are_done_again(
    windows_dir: Path,
    batch: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(windows_dir, tmp_path)
    for call in range(2):  # the second reads back what the first has written
        advance(job, tmp_path / f"output-{call}")
    counted: list[str] = []
    hashed: list[str] = []
    rows, file_hash = WindowReader.rows, scoring.file_hash

    def count(reader: WindowReader, window: Window, domain: int | None = None) -> int:
        if domain is not None:  # reads the window's files
            counted.append(window.name)
        return rows(reader, window, domain)

    def hash_file(path: Path) -> str:
        hashed.append(path.parent.name)
        return file_hash(path)

    monkeypatch.setattr(WindowReader, "rows", count)
    monkeypatch.setattr(scoring, "file_hash", hash_file)
    advance(replace(job, finished=True), tmp_path / "output")
    assert set(hashed) == set(counted) == set(NAMES[-1:])
    assert contents(tmp_path / "output") == batch


def test_killed_while_catching_up_it_goes_on_and_gives_the_batch_bytes(
    windows_dir: Path,
    batch: dict[str, bytes],
    tmp_path: Path,
) -> None:
    arrived = arrive(windows_dir, WINDOWS, tmp_path)
    for steps in (7, 12, 6):  # in the teacher's second window, in the first student, in the second
        kill(advance_and_die, arrived, tmp_path, steps)
        assert not (tmp_path / "output").exists()
    assert advance(job_of(arrived, tmp_path, finished=True), tmp_path / "output").new == NAMES
    assert contents(tmp_path / "output") == batch


def test_second_process_is_refused(windows_dir: Path, tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "work", "other"),
        pytest.raises(InputError, match="another run is using this folder"),
    ):
        advance(job_of(windows_dir, tmp_path), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_withdrawn_snapshot_starts_the_students_over_and_its_windows_are_scored_by_the_one_before(
    windows_dir: Path,
    tmp_path: Path,
) -> None:
    job = job_of(windows_dir, tmp_path, finished=True)
    arrived = arrive(windows_dir, WINDOWS[:3], tmp_path)
    advance(replace(job, windows_dir=arrived), tmp_path / "before")
    bad = list_snapshots(tmp_path / "before" / "teacher" / "snapshots")[1]
    withdrawn = replace(job, withdrawn=frozenset({bad.weights_hash}))
    done = advance(withdrawn, tmp_path / "after")
    assert (done.before, done.new) == ([], NAMES)  # to the students all are new
    advance(replace(withdrawn, work_dir=tmp_path / "at_once"), tmp_path / "expected")
    scores = pl.read_parquet(tmp_path / "after" / "scores" / "w2" / "*.parquet")
    assert scores["snapshot"].unique().to_list() == ["w0"]
    assert contents(tmp_path / "after") == contents(tmp_path / "expected")


def test_changed_and_incomplete_windows_are_one_clear_line(
    windows_dir: Path, tmp_path: Path
) -> None:
    short = arrive(windows_dir, WINDOWS[:2], tmp_path)
    shutil.rmtree(short / "w0")
    (short / "w0").mkdir()
    with pytest.raises(InputError, match="w0: has no data; rebuild it with towerflow ingest"):
        advance(job_of(short, tmp_path), tmp_path / "output")
    advance(job_of(arrive(windows_dir, WINDOWS[:2], tmp_path), tmp_path), tmp_path / "first")
    grown = [replace(WINDOWS[0], rows=301), *WINDOWS[1:]]
    with pytest.raises(
        InputError, match=r"w0: this window has changed since the stream processed it; start over"
    ):
        advance(job_of(arrive(windows_dir, grown, tmp_path), tmp_path), tmp_path / "output")


@pytest.mark.parametrize("teacher", ["external", "mean"])
def test_a_stream_has_no_external_scores(teacher: str, windows_dir: Path, tmp_path: Path) -> None:
    augment = AugmentSettings.model_validate({"teacher": teacher})
    job = replace(job_of(windows_dir, tmp_path), augment=augment)
    with pytest.raises(InputError, match=r"key 'teacher': a stream makes .*; set own, or stacked"):
        advance(job, tmp_path / "output")
    assert not (tmp_path / "output").exists()
