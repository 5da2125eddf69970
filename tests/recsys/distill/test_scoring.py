"""Scoring: killed anywhere it ends with the same bytes; what is scored already is not scored
again."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys import files
from recsys.distill import score_log, scoring
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.score_log import ScoreLog
from recsys.distill.scoring import (
    ScoringJob,
    calls_saved,
    finish_scoring,
    parts_of,
    plan_scoring,
    score_part,
    scoring_speed,
)
from recsys.distill.snapshots import SNAPSHOTS_DIR, drop_weights, list_snapshots
from tests.support.files import contents
from tests.support.killing import kill
from tests.support.toy_stream import ROWS, TEACHER, TRAIN, WINDOWS

SETTINGS = AugmentSettings(batch_size=32, segment_rows=64, staleness_bins_hours=[0.25, 0.5])


@pytest.fixture
def job(windows_dir: Path, teacher_dir: Path, tmp_path: Path) -> ScoringJob:
    return ScoringJob(
        windows_dir,
        None,
        teacher_dir,
        TEACHER,
        SETTINGS,
        TRAIN,
        tmp_path / "log",
        tmp_path / "work",
    )


def run(job: ScoringJob) -> scoring.ScoreReport:
    score_part(job, plan_scoring(job))
    return finish_scoring(job)


def run_and_die(job: ScoringJob, writes: int, published: bool) -> None:
    """Run and kill this process at the ``writes``-th file of the log: before it is published, or
    after."""
    publish, done = files.publish_file, iter(range(1, writes + 1))

    def counted(partial: Path, path: Path) -> None:
        last = next(done) == writes
        if last and not published:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(partial, path)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    files.publish_file = score_log.publish_file = counted
    run(job)


@pytest.fixture(scope="module")
def undisturbed(
    windows_dir: Path,
    teacher_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(ScoringJob(windows_dir, None, teacher_dir, TEACHER, SETTINGS, TRAIN, folder))
    return contents(folder)


def test_log_killed_anywhere_ends_with_the_same_bytes(
    job: ScoringJob, undisturbed: dict[str, bytes]
) -> None:
    for writes, published in ((1, False), (7, True), (3, False), (2, True), (4, True), (6, False)):
        kill(run_and_die, job, writes, published)
    assert job.log_dir.is_dir()
    run(job)
    assert contents(job.log_dir) == undisturbed


def test_kill_costs_at_most_one_segment(job: ScoringJob, monkeypatch: pytest.MonkeyPatch) -> None:
    # Log.json, four keys, w0's window.json, then three segments of w1
    kill(run_and_die, job, 9, True)
    written = contents(job.log_dir)
    assert len(ScoreLog(job.log_dir).segments("w1")) == 3
    predicted: list[int] = []
    predict = scoring.predict

    def counted(*arguments: Any) -> Any:
        frame = predict(*arguments)
        assert frame is not None
        predicted.append(frame.height)
        return frame

    monkeypatch.setattr(scoring, "predict", counted)
    run(job)
    assert sum(predicted) == 3 * ROWS - 3 * SETTINGS.segment_rows
    assert written.items() <= contents(job.log_dir).items()


def test_windows_scored_by_the_same_snapshot_are_skipped(
    job: ScoringJob, undisturbed: dict[str, bytes]
) -> None:
    run(job)
    assert plan_scoring(job) == []
    (job.log_dir / "w2" / "segment-00001.parquet").write_bytes(b"damaged")
    (job.log_dir / "w9").mkdir()
    (job.log_dir / "w9" / "window.json").write_text("{}")
    assert [plan.window.name for plan in plan_scoring(job)] == ["w2"]
    run(job)
    assert contents(job.log_dir) == undisturbed


def test_withdrawn_snapshot_is_rescored_by_the_one_before_it(
    job: ScoringJob, teacher_dir: Path
) -> None:
    run(job)
    bad = next(s for s in list_snapshots(teacher_dir / "snapshots") if s.name == "w1")
    withdrawn = replace(job, withdrawn=frozenset({bad.weights_hash}))
    assert [plan.window.name for plan in plan_scoring(withdrawn)] == ["w2"]
    run(withdrawn)
    assert ScoreLog(job.log_dir).used() == {"w0": ["w1", "w2"], "w2": ["w3"]}


def test_a_window_whose_snapshots_weights_are_gone_gets_no_scores_and_the_others_the_same(
    job: ScoringJob, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    kept = tmp_path / "teacher"
    shutil.copytree(job.teacher_dir, kept)
    drop_weights(kept / SNAPSHOTS_DIR, keep=2)
    run(replace(job, teacher_dir=kept))
    last = WINDOWS[-1].name
    assert list(ScoreLog(job.log_dir).used().values()) == [[last]]
    own = {name: data for name, data in contents(job.log_dir).items() if name.startswith(last)}
    assert own
    assert own.items() <= undisturbed.items()


def test_shares_of_the_windows_scored_apart_give_the_same_log(
    job: ScoringJob, undisturbed: dict[str, bytes]
) -> None:
    plans = plan_scoring(job)
    parts = parts_of(plans, 3)
    assert [plan for part in parts for plan in part] == plans
    assert len(parts) == 3
    for part in reversed(parts):
        score_part(job, part)
    finish_scoring(job)
    assert contents(job.log_dir) == undisturbed


def test_two_ranks_score_what_one_scores(job: ScoringJob, undisturbed: dict[str, bytes]) -> None:
    two = replace(job, train=TRAIN.model_copy(update={"world_size": 2}))
    run(two)
    for window in WINDOWS[1:]:
        name = f"{window.name}/segment-00000.parquet"
        here, alone = pl.read_parquet(job.log_dir / name), pl.read_parquet(undisturbed[name])
        assert here.drop("logit").equals(alone.drop("logit"))
        assert here["logit"].to_numpy() == pytest.approx(alone["logit"].to_numpy(), abs=1e-5)


def test_report_counts_hits_staleness_and_domains(job: ScoringJob) -> None:
    report = run(job)
    assert (report.rows, report.scored, report.hit_rate, report.miss_rate) == (
        4 * ROWS,
        3 * ROWS,
        0.75,
        0.25,
    )
    assert report.staleness == {"0-0.25 h": 3 * 75, "0.25-0.5 h": 3 * 75, "from 0.5 h": 3 * 150}
    assert report.scored_by_domain == {"a": 3 * ROWS // 2, "b": 3 * ROWS // 2}
    assert job.work_dir is not None
    rows, seconds = scoring_speed(job.work_dir)
    assert rows == 3 * ROWS
    assert seconds > 0
    assert not any(
        "seconds" in text.decode(errors="ignore") for text in contents(job.log_dir).values()
    )


def test_calls_saved_are_reads_less_the_scores_that_somebody_reads() -> None:
    assert calls_saved({"a": 10, "b": 20}, {"a": 3}) == 3 * 10 - 10
    assert calls_saved({"a": 10, "b": 20}, {"a": 1, "b": 2}) == 10 + 40 - 30
