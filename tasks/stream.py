"""The stream: new windows are evaluated, scored, trained on and published as they arrive."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from recsys.baselines.settings import BaselinesSettings
from recsys.config import InputError, load_settings
from recsys.data.schema import MANIFEST_FILE, SCHEMA_FILE, Schema
from recsys.data.settings import DatasetSettings, DataSettings, load_dataset
from recsys.data.sources.files import resolve_files
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.withdrawn_settings import WithdrawnSettings
from recsys.files import UnreachableError, read_json
from recsys.towers.settings import TowersSettings
from tasks.augmentation import augment_settings_file
from tasks.curves import curves_of
from tasks.ingest import REMOTE_FILE, remote_states
from tasks.project import (
    ORACLE,
    PARAMS,
    PARTITION_FILE,
    PUBLISHED,
    STREAM,
    STREAM_REPORT,
    STREAM_WORK,
    WINDOWS,
    WITHDRAWN_FILE,
    replacing,
    require,
)
from tasks.registry import Served, register_models
from tasks.stream_settings import load_stream_settings
from tasks.teacher_settings import load_teacher
from tasks.tracking import RunRecord, flatten, record
from tasks.versioning import code_version, output_version, settled_stages

if TYPE_CHECKING:
    from recsys.distill.online_stream import StreamJob

WATCH_LOCK = "stream-watch.lock"
LINEAGE_FILE, EVALUATED_DIR, PUBLISHED_MARK = "lineage.json", "evaluated", "published"


@dataclass(frozen=True)
class Taken:
    """The result of taking new windows in one call.

    Attributes:
        key: identifies everything that decides the results of a window: settings, code, features,
            withdrawn snapshots.
        work: the folder from which the stream continues.
        windows: names of all windows taken so far.
        new: how many of them are new.
    """

    key: str
    work: Path
    windows: list[str]
    new: int


def log_state() -> tuple[list[Any], list[tuple[str, int, int]]]:
    """The raw log's files with their settings, and the windows' schema, each as (path, bytes, ns of
    the last change); for a file behind a URL, its name and the state that the store reports.

    A log that is not there yet has no files.

    Raises:
        UnreachableError: a store does not answer.
    """
    settings = load_settings(PARAMS / "data.yaml", DataSettings)
    dataset = load_dataset(settings, PARAMS / "datasets")
    names = [
        PARAMS / "data.yaml",
        PARAMS / "datasets" / f"{settings.dataset}.yaml",
        *_files(dataset, settings),
    ]
    try:
        remote = sorted(remote_states(dataset, settings).items())
    except UnreachableError:
        raise
    except InputError:
        remote = []
    return [*map(_file_state, names), *remote], [_file_state(WINDOWS / SCHEMA_FILE)]


@task
def ingest_is_due() -> bool:
    """Whether data/windows do not match the raw log, its settings and this code."""
    if settled_stages("ingest"):
        return True
    settings = load_settings(PARAMS / "data.yaml", DataSettings)
    remote = remote_states(load_dataset(settings, PARAMS / "datasets"), settings)
    known = WINDOWS / REMOTE_FILE
    return remote != (read_json(known) if known.is_file() else {})


@task
def what_is_missing() -> str | None:
    """What the stream waits for before it takes its first window; None if nothing is missing."""
    complete = len(Schema.load(WINDOWS).windows) - (0 if load_stream_settings().finished else 1)
    wanted, why = 1, "the last window of a log that is not finished may still grow"
    students = load_settings(PARAMS / "students.yaml", StudentsSettings)
    if students.windows_to_choose_on > wanted:
        wanted, why = students.windows_to_choose_on, "students' rows and rates are chosen on them"
    teacher, _ = load_teacher(PARAMS)
    if teacher.windows_to_choose_on > wanted:
        wanted, why = teacher.windows_to_choose_on, "the teacher's rate is chosen on them"
    if _lacks_partition():
        probed = load_settings(PARAMS / "towers.yaml", TowersSettings).partition.probe_windows
        if probed >= wanted:
            wanted, why = probed, "the teacher's towers are computed from them"
    return (
        None
        if complete >= wanted
        else f"waits for {wanted} complete windows ({why}); there are {complete}"
    )


@task
def partition_is_due() -> bool:
    """Whether the teacher's towers have yet to be computed."""
    return _lacks_partition()


@task
def advance_stream() -> Taken:
    """Take the complete new windows through teacher, scores and students and put all results in
    models/stream."""
    from recsys.distill.online_stream import SCORES_DIR, STUDENTS_DIR, TEACHER_DIR, advance
    from recsys.files import fingerprint, write_sums

    require(WINDOWS)
    job = _job()
    with replacing(STREAM) as (output,):
        done = advance(job, output)
        windows = [*done.before, *done.new]
        lineage = _lineage(job.work_dir / done.run, windows)
        (output / LINEAGE_FILE).write_text(lineage)
        for part in (TEACHER_DIR, SCORES_DIR, STUDENTS_DIR):  # like the batch stages' outputs
            if (output / part).is_dir():
                write_sums(output / part)
    key = fingerprint(done.run, sorted(job.withdrawn))
    return Taken(key, job.work_dir / done.run, windows, len(done.new))


@task
def evaluate_stream(taken: Taken) -> dict[str, str]:
    """Measure each window not measured before, write reports/stream, and return each student's best
    arm so far."""
    from recsys.distill.online_stream import SCORES_DIR, STUDENTS_DIR, TEACHER_DIR, WINDOWS_DIR
    from recsys.evaluation.online_report import best_arms, evaluate_windows

    kept = taken.work / EVALUATED_DIR / taken.key
    teacher = load_settings(augment_settings_file(), AugmentSettings).teacher
    with replacing(STREAM_REPORT) as (output,):
        rows = evaluate_windows(
            taken.work / WINDOWS_DIR,
            ORACLE,
            STREAM / TEACHER_DIR,
            STREAM / STUDENTS_DIR,
            kept,
            output,
            None if teacher == "own" else (teacher, STREAM / SCORES_DIR),
        )
    return best_arms(rows)


@task
def publish_stream(taken: Taken, best: dict[str, str]) -> None:
    """Publish each student's best arm in models/published for running servers, continue each
    model's MLflow run from the first window that it lacks, and register the best arms.

    The next call repeats one that was stopped; MLflow keeps a value once even if it is sent twice.
    """
    from recsys.distill.online_stream import STUDENTS_DIR
    from recsys.distill.students import EXPORT_DIR
    from recsys.files import write_atomically
    from recsys.serving.publication import publish

    mark = taken.work / f"{PUBLISHED_MARK}-{taken.key}"
    first = int(mark.read_text()) if mark.is_file() else 0
    if first == len(taken.windows):
        return
    for name, arm in best.items():
        publish(STREAM / STUDENTS_DIR / name / arm / EXPORT_DIR, PUBLISHED / name)
    for name, folder, parameters in _models():
        record(
            RunRecord(
                name=f"stream: {name}",
                kind="stream",
                parameters=parameters,
                data_version=output_version(WINDOWS),
                dataset=Schema.load(WINDOWS).dataset,
                curves=curves_of(folder, first),
                tags={"windows": str(len(taken.windows)), "last_window": taken.windows[-1]},
                artifacts={str(folder / "metrics.json"): "", str(STREAM / LINEAGE_FILE): ""},
                grows=f"{taken.key}/{name}",
                first_step=first,
            )
        )
    alias = load_stream_settings().alias
    if alias is not None:
        chosen = {
            name: Served(
                arm,
                STREAM / STUDENTS_DIR / name / arm / EXPORT_DIR,
                alias,
                f"{arm} has the lowest LogLoss up to window {taken.windows[-1]}",
            )
            for name, arm in best.items()
        }
        register_models(chosen)
    write_atomically(mark, str(len(taken.windows)).encode())


def _models() -> list[tuple[str, Path, dict[str, Any]]]:
    """Name, folder and parameters of the teacher and of each student, arm and seed."""
    from recsys.distill.online_stream import STUDENTS_DIR, TEACHER_DIR

    teacher, train = load_teacher(PARAMS)
    students = load_settings(PARAMS / "students.yaml", StudentsSettings)
    models = [("teacher", STREAM / TEACHER_DIR, flatten(teacher) | flatten(train))]
    for folder in sorted((STREAM / STUDENTS_DIR).glob("*/*/seed-*")):
        models.append(("-".join(folder.parts[-3:]), folder, flatten(students) | flatten(train)))
    return models


def _lacks_partition() -> bool:
    teacher, _ = load_teacher(PARAMS)
    return teacher.model.towers and not PARTITION_FILE.is_file()


def _files(dataset: DatasetSettings, settings: DataSettings) -> list[Path]:
    """The raw log's files; none for a generated log or one that does not exist yet."""
    described = dataset.table or dataset.criteo
    if described is None:
        return []
    try:
        return resolve_files(described.files, settings.root)
    except InputError:
        return []


def _file_state(path: Path) -> tuple[str, int, int]:
    """(path, bytes, ns of the last change), with zeros for a missing file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return str(path), 0, 0
    return str(path), stat.st_size, stat.st_mtime_ns


def _job() -> "StreamJob":
    from recsys.distill.online_stream import StreamJob

    teacher, train = load_teacher(PARAMS)
    settings = load_stream_settings()
    return StreamJob(
        windows_dir=WINDOWS,
        partition_file=PARTITION_FILE,
        teacher=teacher,
        augment=load_settings(augment_settings_file(), AugmentSettings),
        students=load_settings(PARAMS / "students.yaml", StudentsSettings),
        train=train,
        baselines=load_settings(PARAMS / "baselines.yaml", BaselinesSettings),
        work_dir=STREAM_WORK,
        withdrawn=load_settings(WITHDRAWN_FILE, WithdrawnSettings).hashes,
        finished=settings.finished,
        windows_at_once=settings.windows_at_once,
    )


def _lineage(work: Path, windows: list[str]) -> str:
    """The contents of lineage.json: which windows came with which version of data/windows and of
    the code, in order of arrival."""
    from recsys.distill.online_stream import WINDOWS_DIR
    from recsys.files import file_hash, read_json, write_atomically

    path = work / LINEAGE_FILE
    known = read_json(path) if path.is_file() else []
    new = windows[sum(len(entry["windows"]) for entry in known) :]
    if new:
        manifests = {name: file_hash(work / WINDOWS_DIR / name / MANIFEST_FILE) for name in new}
        known.append(
            {
                "windows": manifests,
                "data_version": output_version(WINDOWS),
                "code_version": code_version(),
            }
        )
    text = json.dumps(known, indent=1) + "\n"
    write_atomically(path, text.encode())
    return text
