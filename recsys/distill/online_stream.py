"""The stream: new windows go through the functions of the batch stages as they come, and give the
same bytes.

In its work folder a stream keeps the windows it has taken (hard links, and a schema that lists only
these), the teacher's and students' checkpoints, the score log and all results. The batch functions
see only these windows and resume from their checkpoints; at the end of the stream they have seen
the same data as the batch stages.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import polars as pl

from recsys.baselines.settings import BaselinesSettings
from recsys.baselines.training import train_baselines
from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.schema import (
    CANDIDATES_DIR,
    MANIFEST_FILE,
    SCHEMA_FILE,
    Schema,
    Window,
    task_columns,
    window_parts,
)
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.score_log import ScoreLog
from recsys.distill.scoring import ScoringJob, finish_scoring, plan_scoring, score_part
from recsys.distill.snapshots import SNAPSHOTS_DIR, drop_weights
from recsys.distill.stacked_scores import log_stacked_scores
from recsys.distill.student_checks import check_students
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.students import run_students, students_checkpoints
from recsys.distill.teacher import (
    CHECKPOINT_KEYS,
    PLACEMENT_KEYS,
    load_partition,
    run_teacher,
    teacher_checkpoints,
    teacher_code,
)
from recsys.distill.teacher_settings import TeacherSettings
from recsys.distill.training_job import S, TrainingJob
from recsys.files import (
    PARTIAL_SUFFIX,
    fingerprint,
    link_file,
    link_files,
    read_json,
    write_atomically,
)
from recsys.training.resume import CHECKPOINTS_DIR, OUTPUT_DIR, Checkpoints, work_folder
from recsys.training.settings import TrainSettings

TEACHER_DIR, SCORES_DIR, STUDENTS_DIR = "teacher", "scores", "students"
BASELINES_DIR, OWN_DIR = "baselines", "own"
WINDOWS_DIR, SCORING_DIR, DONE_FILE = "windows", "scoring", "done.json"
BEGUN = "students_begun"
PARQUET = ".parquet"


@dataclass(frozen=True)
class StreamJob:
    """A stream's inputs, its settings, and its work folder.

    Attributes:
        baselines: the baselines that also score, if ``augment`` stacks them.
        windows_dir: folder written by ingest; between two calls it may be replaced by one with more
            windows.
        withdrawn: hashes of the weights of snapshots that may not score.
        finished: whether the last window is complete, so that it is taken too; otherwise it may
            still grow.
        windows_at_once: the most windows that one call takes; None: all complete ones. The first
            call waits for, and takes, the windows on which the teacher's rate and the students'
            rows are chosen.
    """

    windows_dir: Path
    partition_file: Path | None
    teacher: TeacherSettings
    augment: AugmentSettings
    students: StudentsSettings
    train: TrainSettings
    work_dir: Path
    baselines: BaselinesSettings = field(default_factory=BaselinesSettings)
    withdrawn: frozenset[str] = frozenset()
    finished: bool = False
    windows_at_once: int | None = None


@dataclass(frozen=True)
class Advance:
    """The result of a call: the stream's name, the windows that all its models had processed
    before, and those that are new to some of them (all, if the students started over)."""

    run: str
    before: list[str]
    new: list[str]


def advance(job: StreamJob, output_dir: Path) -> Advance:
    """Take the complete new windows through teacher, scoring and students, and write all results to
    an empty folder.

    First the teacher predicts each new window in order, trains on it and publishes. Then each
    window is scored by the newest allowed snapshot, and then each student predicts and trains.
    Writes teacher/, scores/ and students/ to ``output_dir``, with the files of
    :func:`train_teacher`, :func:`score_windows` and :func:`train_students`, byte-identical to these
    functions' output for the same windows. A call resumes where a killed one stopped. With other
    settings, code or features the stream starts over; after a withdrawal, the students do.

    Raises:
        InputError: another process is advancing the stream, a processed window has changed, a new
            window precedes the last processed one, data are missing or damaged, or the settings do
            not suit a stream.
        LookAheadError: as :func:`score_windows`.
    """
    offered = Schema.load(job.windows_dir)
    _check(job, offered)
    run = _run_name(job, offered)
    with work_folder(job.work_dir, run) as folder:
        windows = _take(job, offered, folder / WINDOWS_DIR)
        before = 0
        if windows:
            _advance_teacher(job, run, folder, len(windows))
            _score(job, folder)
            # After _score, which may make the students start over
            before = _done(folder)[STUDENTS_DIR]
            _advance_students(job, run, folder, len(windows))
        _copy_results(folder / OUTPUT_DIR, output_dir)
    names = [window.name for window in windows]
    return Advance(run, names[:before], names[before:])


def _check(job: StreamJob, schema: Schema) -> None:
    external = job.augment.teacher == "stacked" and "external" in job.augment.stack.members
    if job.augment.teacher not in ("own", "stacked") or external:
        raise InputError(
            f"{job.augment.where('teacher')}: a stream makes its own scores and does not read them "
            f"from files; set own, or stacked without external"
        )
    missing = set(job.augment.baselines) - set(job.baselines.run)
    if missing:
        raise InputError(
            f"{job.augment.where('stack.members')}: {min(missing)} is not among the baselines that "
            f"are trained; add it to {job.baselines.where('run')}"
        )
    if job.teacher.quantise_checkpoints != "none":
        raise InputError(
            f"{job.teacher.where('quantise_checkpoints')}: a stream resumes from its checkpoints "
            "and would lose precision each time; set none"
        )
    if job.train.nodes.count > 1:
        raise InputError(f"{job.train.where('nodes.count')}: a stream runs on one machine; set 1")
    if (job.windows_dir / CANDIDATES_DIR).is_dir():
        raise InputError(
            f"{job.windows_dir / CANDIDATES_DIR}: a stream does not score candidates; leave "
            f"table.candidates out of the dataset"
        )
    check_students(schema, job.students)


def _run_name(job: StreamJob, schema: Schema) -> str:
    """A name for everything that decides the results, except the windows and withdrawn
    snapshots."""
    return fingerprint(
        teacher_code(__name__, job.teacher.model),
        load_partition(job.partition_file, job.teacher.model),
        asdict(replace(schema, windows=[])),
        job.teacher.model_dump(exclude=CHECKPOINT_KEYS),
        job.augment.model_dump(exclude={"external", "runner", "parallel_tasks"}),
        job.baselines.model_dump(exclude={"parallel"}) if job.augment.baselines else None,
        job.students.model_dump(exclude=CHECKPOINT_KEYS, exclude_unset=True),
        job.train.model_dump(exclude=PLACEMENT_KEYS),
    )


def _take(job: StreamJob, offered: Schema, taken_dir: Path) -> list[Window]:
    """Take the new complete windows; returns all windows taken so far.

    The first ones are taken together, as many as are needed to choose the teacher's rate and the
    students' rows.

    Raises:
        InputError: a processed window has changed, or a new one precedes the last processed one or
            is incomplete.
    """
    taken = Schema.load(taken_dir).windows if (taken_dir / SCHEMA_FILE).is_file() else []
    known = {window.name: window for window in taken}
    for window in offered.windows:
        where = f"{job.windows_dir / window.name}"
        if window.name not in known:
            if taken and window.start_ms < taken[-1].end_ms:
                raise InputError(
                    f"{where}: this window comes before {taken[-1].name}, which the stream has "
                    f"already processed; start over without {job.work_dir}"
                )
        elif window != known[window.name] or _parts(job.windows_dir, window) != _parts(
            taken_dir, window
        ):
            raise InputError(
                f"{where}: this window has changed since the stream processed it; start over "
                f"without {job.work_dir}"
            )
    complete = offered.windows if job.finished else offered.windows[:-1]
    offered_new = [window for window in complete if window.name not in known]
    to_choose_on = max(job.students.windows_to_choose_on, job.teacher.windows_to_choose_on)
    needed = max(to_choose_on - len(taken), 0)
    if len(offered_new) < needed:
        return taken
    at_once = job.windows_at_once
    new = offered_new[: None if at_once is None else max(at_once, needed)]
    for window in new:
        _link_window(job.windows_dir, window, taken_dir)
    if new:
        Encoder.load(job.windows_dir).save(taken_dir)
        schema = taken_dir / f"{SCHEMA_FILE}{PARTIAL_SUFFIX}"
        schema.mkdir(exist_ok=True)
        replace(offered, windows=taken + new).save(schema)
        (schema / SCHEMA_FILE).rename(taken_dir / SCHEMA_FILE)
    return taken + new


def _parts(windows_dir: Path, window: Window) -> dict[str, str] | None:
    """SHA-256 by part from the window's manifest; None without a manifest."""
    path = windows_dir / window.name / MANIFEST_FILE
    return read_json(path)["parts"] if path.is_file() else None


def _link_window(source: Path, window: Window, taken_dir: Path) -> None:
    """Hard-link a window's files, all or none, so that ingest may replace its folder meanwhile."""
    partial, target = taken_dir / f"{window.name}{PARTIAL_SUFFIX}", taken_dir / window.name
    for left in (partial, target):
        shutil.rmtree(left, ignore_errors=True)
    window_parts(source, window)  # checks that it is complete and unchanged
    try:
        link_files(source / window.name, partial)
    except OSError as error:
        raise InputError(
            f"{source / window.name}: cannot be linked ({error}); run the ingest stage again"
        ) from error
    found = sum(
        pl.scan_parquet(part).select(pl.len()).collect().item()
        for part in partial.glob("part-*.parquet")
    )
    if found != window.rows:
        raise InputError(
            f"{source / window.name}: {found} rows where {SCHEMA_FILE} says {window.rows}; run the "
            f"ingest stage again"
        )
    partial.rename(target)


def _done(folder: Path) -> dict[str, int]:
    """How many windows the teacher and all students have processed, and how many a student may have
    begun."""
    path = folder / DONE_FILE
    return read_json(path) if path.is_file() else {TEACHER_DIR: 0, STUDENTS_DIR: 0, BEGUN: 0}


def _mark(folder: Path, **counts: int) -> None:
    write_atomically(
        folder / DONE_FILE, json.dumps(_done(folder) | counts, sort_keys=True).encode()
    )


def _advance_teacher(job: StreamJob, run: str, folder: Path, windows: int) -> None:
    if _done(folder)[TEACHER_DIR] == windows:
        return
    checkpoints = teacher_checkpoints(
        folder / CHECKPOINTS_DIR / TEACHER_DIR, run, job.teacher, continued=True
    )
    all_kept = job.teacher.model_copy(update={"keep_snapshots": None})  # until they have scored
    run_teacher(_training(job, all_kept, folder, TEACHER_DIR, checkpoints))
    _mark(folder, teacher=windows)


def _score(job: StreamJob, folder: Path) -> None:
    """Score windows that are not scored yet, or no longer by the right snapshot; in the latter case
    the students start over."""
    scoring = ScoringJob(
        windows_dir=folder / WINDOWS_DIR,
        partition_file=job.partition_file,
        teacher_dir=folder / OUTPUT_DIR / TEACHER_DIR,
        teacher=job.teacher,
        settings=job.augment,
        train=job.train,
        log_dir=folder / OUTPUT_DIR / SCORES_DIR,
        work_dir=folder / SCORING_DIR,
        withdrawn=job.withdrawn,
        growing=True,
    )
    if scoring.settings.teacher == "stacked":  # stacked scores are a separate log
        scoring = replace(scoring, log_dir=folder / SCORING_DIR / OWN_DIR)
    plans = plan_scoring(scoring)
    begun = Schema.load(folder / WINDOWS_DIR).windows[: _done(folder)[BEGUN]]
    if {plan.window.name for plan in plans} & {window.name for window in begun}:
        for part in (OUTPUT_DIR, CHECKPOINTS_DIR):
            shutil.rmtree(folder / part / STUDENTS_DIR, ignore_errors=True)
        _mark(folder, students=0, students_begun=0)
    if plans:
        score_part(scoring, plans)
    finish_scoring(scoring)
    if job.teacher.keep_snapshots is not None:
        drop_weights(scoring.teacher_dir / SNAPSHOTS_DIR, job.teacher.keep_snapshots)
    if scoring.settings.teacher == "stacked":
        _stack(job, folder, scoring)


def _stack(job: StreamJob, folder: Path, scoring: ScoringJob) -> None:
    """Rewrite the stacked scores of all windows taken so far, from the teacher's and the
    baselines'."""
    windows_dir, baselines_dir = folder / WINDOWS_DIR, folder / OUTPUT_DIR / BASELINES_DIR
    chosen = [name for name in job.baselines.run if name in job.augment.baselines]
    if chosen:
        settings = job.baselines.model_copy(update={"run": chosen})
        train_baselines(windows_dir, settings, baselines_dir, ["all"])
    own = None
    if job.augment.uses_own:
        own = ScoreLog(scoring.log_dir, task_columns("logit", Schema.load(windows_dir).tasks))
    log_dir = folder / OUTPUT_DIR / SCORES_DIR
    log_stacked_scores(windows_dir, job.augment, log_dir, own, baselines_dir)


def _advance_students(job: StreamJob, run: str, folder: Path, windows: int) -> None:
    if _done(folder)[STUDENTS_DIR] == windows:
        return
    _mark(folder, students_begun=windows)
    checkpoints = students_checkpoints(
        folder / CHECKPOINTS_DIR / STUDENTS_DIR, run, job.students, continued=True
    )
    run_students(_training(job, job.students, folder, STUDENTS_DIR, checkpoints))
    _mark(folder, students=windows)


def _training(
    job: StreamJob, settings: S, folder: Path, part: str, checkpoints: Checkpoints
) -> TrainingJob[S]:
    """The stream's ``part`` as a separate job on the windows and scores taken so far; creates its
    folders."""
    output, scores = folder / OUTPUT_DIR / part, folder / OUTPUT_DIR / SCORES_DIR
    for path in (output, checkpoints.folder):
        path.mkdir(exist_ok=True)
    windows = folder / WINDOWS_DIR
    return TrainingJob(
        windows, settings, job.train, output, job.partition_file, scores, checkpoints
    )


def _copy_results(source: Path, target: Path) -> None:
    """Copy the results, with links for large files that are never rewritten; half-written files are
    left out."""

    def copy(path: str, to: str) -> None:
        is_final = (
            Path(path).suffix == PARQUET or SNAPSHOTS_DIR in Path(path).relative_to(source).parts
        )
        (link_file if is_final else shutil.copyfile)(path, to)

    halves = shutil.ignore_patterns(f"*{PARTIAL_SUFFIX}")
    shutil.copytree(source, target, copy_function=copy, ignore=halves, dirs_exist_ok=True)
