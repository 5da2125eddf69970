"""A withdrawn snapshot is noted whole, by its weights, and what it has touched is named."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recsys import files
from recsys.config import InputError, load_settings
from recsys.data.schema import Schema, Window
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.score_log import SCORE_SCHEMA, ScoreLog, WindowFacts
from recsys.distill.snapshots import Snapshot
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.withdrawals import touched_by, withdraw
from recsys.distill.withdrawn_settings import WithdrawnSettings

SNAPSHOTS = [
    Snapshot(name, name, mark, 0.9, f"hash-{name}", False)
    for name, mark in (("w0", 100), ("w1", 200))
]
WINDOWS = [Window(f"w{i}", 100 * i, 100 * (i + 1), 10, 0) for i in range(4)]
SCHEMA = Schema("toy", [], [], ["feed", "video"], WINDOWS, 0.1, {})
STUDENTS = StudentsSettings(
    students=[
        StudentSettings(name="one", domain="feed"),
        StudentSettings(name="two", domain="video"),
    ],
    distillation=DistillationSettings(),
)


@pytest.fixture
def withdrawn_file(tmp_path: Path) -> Path:
    path = tmp_path / "withdrawn.yaml"
    path.write_text("snapshots: []\n")
    return path


@pytest.fixture
def log(tmp_path: Path) -> ScoreLog:
    """w1 scored by w0; w2 and w3 by w1, in the domain feed only."""
    log = ScoreLog(tmp_path / "scores")
    log.folder.mkdir()
    log.describe(None, SNAPSHOTS)
    for window, by, domains in (
        ("w1", "w0", {"feed": 5, "video": 5}),
        ("w2", "w1", {"feed": 9}),
        ("w3", "w1", {}),
    ):
        log.write_chunk(window, 0, pl.DataFrame(schema=SCORE_SCHEMA), domains)
        log.finish(WindowFacts(window, 10, 10, by, 0.0, 0, [10], domains))
    return log


def test_withdrawing_names_windows_and_students(log: ScoreLog, withdrawn_file: Path) -> None:
    snapshot = withdraw("w1", SNAPSHOTS, withdrawn_file)
    touched = touched_by(snapshot, log, SCHEMA, STUDENTS)
    assert (touched.windows, touched.students) == (["w2", "w3"], ["one"])
    assert load_settings(withdrawn_file, WithdrawnSettings).hashes == {"hash-w1"}
    assert touched_by(SNAPSHOTS[0], log, SCHEMA, STUDENTS).students == ["one", "two"]


@pytest.mark.parametrize("rows", ["scores_elsewhere", "all", "auto"])
def test_a_student_that_reads_other_domains_scores_is_touched_by_them(
    rows: str, log: ScoreLog
) -> None:
    arms = STUDENTS.arms | {"wide": DistillationSettings.model_validate({"rows": rows})}
    settings = STUDENTS.model_copy(update={"arms": arms})
    assert touched_by(SNAPSHOTS[1], log, SCHEMA, settings).students == ["one", "two"]
    without_teacher = STUDENTS.arms | {"wide": DistillationSettings(mode="none", rows="all")}
    settings = STUDENTS.model_copy(update={"arms": without_teacher})
    assert touched_by(SNAPSHOTS[1], log, SCHEMA, settings).students == ["one"]


def test_snapshot_trained_again_under_the_same_name_has_touched_nothing(log: ScoreLog) -> None:
    again = replace(SNAPSHOTS[1], weights_hash="other")
    assert touched_by(again, log, SCHEMA, STUDENTS).windows == []


def test_withdrawing_twice_notes_it_once_and_keeps_the_others(withdrawn_file: Path) -> None:
    for name in ("w1", "w0", "w1"):
        withdraw(name, SNAPSHOTS, withdrawn_file)
    settings = load_settings(withdrawn_file, WithdrawnSettings)
    assert [one.snapshot for one in settings.snapshots] == ["w1", "w0"]


def test_unknown_snapshot_is_named_with_those_there_are(withdrawn_file: Path) -> None:
    with pytest.raises(InputError, match="no snapshot 'w7'; snapshots: w0, w1"):
        withdraw("w7", SNAPSHOTS, withdrawn_file)


def test_withdrawal_that_cannot_be_written_leaves_the_file_as_it_was(
    withdrawn_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = withdrawn_file.read_bytes()

    def fail(partial: Path, path: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files, "publish_file", fail)
    with pytest.raises(OSError, match="disk full"):
        withdraw("w1", SNAPSHOTS, withdrawn_file)
    assert withdrawn_file.read_bytes() == before
