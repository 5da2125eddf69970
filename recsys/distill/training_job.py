"""A training job for the teacher or the students, in the batch stages and the stream."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from recsys.files import link_files
from recsys.training.resume import CHECKPOINTS_DIR, OUTPUT_DIR, Checkpoints, work_folder
from recsys.training.settings import TrainSettings

if TYPE_CHECKING:  # else a change of the students' settings code would retrain the teacher
    from recsys.distill.student_settings import StudentsSettings
    from recsys.distill.teacher_settings import TeacherSettings

S = TypeVar("S", "TeacherSettings", "StudentsSettings")


@dataclass(frozen=True)
class TrainingJob(Generic[S]):
    """The data to train on, the settings, and where the results go.

    Attributes:
        settings: the teacher's settings, or those of all students.
        output_dir: an existing folder for the results.
        partition_file: the towers, for a teacher with towers.
        scores_dir: the score log that students read.
        checkpoints: where to resume from; None: neither read nor written.
        live_dir: folder for one file per model, ``teacher.jsonl`` or
            ``<student>/<arm>/seed-<n>.jsonl``, with the results of each window as it ends
            (:func:`recsys.progress.note_live`).
    """

    windows_dir: Path
    settings: S
    train: TrainSettings
    output_dir: Path
    partition_file: Path | None = None
    scores_dir: Path | None = None
    checkpoints: Checkpoints | None = None
    live_dir: Path | None = None


@contextmanager
def resumable(
    job: TrainingJob[S],
    resume_dir: Path,
    run: str,
    checkpoints_of: Callable[[Path, str, S], Checkpoints],
) -> Iterator[TrainingJob[S]]:
    """``job`` running in ``resume_dir``, where it resumes after a killed process of the same
    ``run``.

    At the end its results are moved to ``job.output_dir``.

    Raises:
        InputError: another process is using ``resume_dir``.
    """
    with work_folder(resume_dir, run, shared=job.train.nodes.count > 1) as folder:
        checkpoints = checkpoints_of(folder / CHECKPOINTS_DIR, run, job.settings)
        yield replace(job, output_dir=folder / OUTPUT_DIR, checkpoints=checkpoints)
        link_files(folder / OUTPUT_DIR, job.output_dir)
