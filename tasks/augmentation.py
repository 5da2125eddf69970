"""Score the teacher's later windows in shares and publish the log as data/scores."""

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from recsys.config import load_settings
from recsys.data.schema import CANDIDATES_DIR, Schema, task_columns
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.withdrawn_settings import WithdrawnSettings
from recsys.files import link_files
from tasks.project import (
    BASELINES,
    PARAMS,
    PARTITION_FILE,
    SCORES,
    SCORES_WORK,
    TEACHER,
    WINDOWS,
    WITHDRAWN_FILE,
    replacing,
    require,
)
from tasks.teacher_settings import load_teacher
from tasks.tracking import RunRecord, flatten, record
from tasks.versioning import output_version

if TYPE_CHECKING:
    from recsys.distill.scoring import ScoringJob, WindowPlan

LOG_DIR = SCORES_WORK / "log"
CANDIDATES_LOG = SCORES_WORK / "candidates_log"
EXTERNAL_DIR = SCORES_WORK / "external"  # a separate log, so that the two kinds never mix


def augment_settings_file() -> Path:
    """The path of params/augment.yaml."""
    return PARAMS / "augment.yaml"


@task(task_run_name="plan what is scored", tags=["scores"])
def plan_scores() -> "list[list[WindowPlan]]":
    """The windows still to be scored, in shares for mapped tasks, without those that a killed run
    has scored already."""
    from recsys.distill.scoring import parts_of, plan_scoring

    require(WINDOWS, PARTITION_FILE, TEACHER)
    job = _job()
    return parts_of(plan_scoring(job), job.settings.parallel_tasks)


@task(task_run_name="score share")
def score_share(share: "list[WindowPlan]") -> None:
    """Score some windows, in a separate process if other shares run at the same time: launching
    ranks changes the environment of a whole process."""
    from recsys.distill.scoring import score_part
    from recsys.training.launch import main_module_stays_here, start_server

    job = _job()
    if job.settings.parallel_tasks == 1:
        score_part(job, share)
        return
    start_server()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as own:
        with main_module_stays_here(job, share):
            scored = own.submit(score_part, job, share)
        scored.result()


@task(task_run_name="score candidates", tags=["scores"])
def score_candidates() -> None:
    """Score the log's candidates, if it has any, with the project's own teacher."""
    from recsys.distill.scoring import plan_scoring, report_scores, score_part

    own, windows = _job(), WINDOWS / CANDIDATES_DIR
    if not windows.is_dir():
        shutil.rmtree(CANDIDATES_LOG, ignore_errors=True)
        return
    if not own.settings.uses_own:
        shutil.rmtree(CANDIDATES_LOG, ignore_errors=True)
        print(
            f"candidates: not scored; only the project's own teacher scores them, "
            f"which teacher: {own.settings.teacher} does not use",
            flush=True,
        )
        return
    job = replace(
        own, windows_dir=windows, log_dir=CANDIDATES_LOG, work_dir=SCORES_WORK / CANDIDATES_DIR
    )
    score_part(job, plan_scoring(job))
    report = report_scores(windows, CANDIDATES_LOG, job.settings)
    print(f"candidates: {report.scored:,} of {report.rows:,} have a score", flush=True)


@task(task_run_name="combine the scores", tags=["scores"])
def combine_scores() -> None:
    """Write the external scores that params/augment.yaml names to a separate log and describe them;
    with ``teacher: mean`` or ``stacked``, combine them with the teacher's."""
    from recsys.distill.external_scores import log_external_scores
    from recsys.distill.score_log import ScoreLog
    from recsys.distill.stacked_scores import log_stacked_scores

    settings = load_settings(augment_settings_file(), AugmentSettings)
    require(WINDOWS, *([BASELINES] if settings.baselines else []))
    own = None
    if settings.uses_own:
        tasks = Schema.load(WINDOWS).tasks
        own = ScoreLog(LOG_DIR, task_columns("logit", tasks))
    if settings.teacher == "stacked":
        report = log_stacked_scores(WINDOWS, settings, EXTERNAL_DIR, own, BASELINES)
    else:
        report = log_external_scores(WINDOWS, settings, EXTERNAL_DIR, own)
    print("\n".join(report.lines()), flush=True)


@task(task_run_name="publish the scores", tags=["scores"])
def publish_scores() -> None:
    """Write the report, move the log to data/scores, and send speed and savings to MLflow."""
    from recsys.distill.scoring import calls_saved, report_scores, scoring_speed

    job = _job()
    is_own = job.settings.teacher == "own"
    log_dir = LOG_DIR if is_own else EXTERNAL_DIR
    report = report_scores(WINDOWS, log_dir, job.settings)
    with replacing(SCORES) as (output,):
        link_files(log_dir, output)
        if CANDIDATES_LOG.is_dir():
            link_files(CANDIDATES_LOG, output / CANDIDATES_DIR)
    students = load_settings(PARAMS / "students.yaml", StudentsSettings)
    # At least: a student that learns other domains' rows reads their scores too
    domains = [student.domain for student in students.students]
    readers = {domain: domains.count(domain) * len(students.seeds) for domain in domains}
    rows, seconds = scoring_speed(SCORES_WORK) if job.settings.uses_own else (0, 0.0)
    measured = {
        "calls": report.scored,
        "calls_saved": calls_saved(report.scored_by_domain, readers),
        "hit_rate": report.hit_rate,
        "miss_rate": report.miss_rate,
        "examples_per_second": rows / seconds if seconds else 0.0,
    }
    (SCORES_WORK / "measured.json").write_text(
        json.dumps(measured, indent=1, sort_keys=True) + "\n"
    )
    record(
        RunRecord(
            name="scores",
            kind="scores",
            parameters=flatten(job.settings) | flatten(job.train),
            data_version=output_version(WINDOWS),
            dataset=Schema.load(WINDOWS).dataset,
            metrics={key: float(value) for key, value in measured.items()},
            curves={
                "staleness/examples_by_bin": [float(count) for count in report.staleness.values()]
            },
            tags={"teacher": job.settings.teacher, "teacher_version": output_version(TEACHER)},
            artifacts={str(SCORES / "scoring.json"): "", str(SCORES_WORK / "measured.json"): ""},
        )
    )


def _job() -> "ScoringJob":
    from recsys.distill.scoring import ScoringJob

    teacher, train = load_teacher(PARAMS)
    return ScoringJob(
        windows_dir=WINDOWS,
        partition_file=PARTITION_FILE,
        teacher_dir=TEACHER,
        teacher=teacher,
        settings=load_settings(augment_settings_file(), AugmentSettings),
        train=train,
        log_dir=LOG_DIR,
        work_dir=SCORES_WORK,
        withdrawn=load_settings(WITHDRAWN_FILE, WithdrawnSettings).hashes,
    )
