"""Students that are trained with a folder to resume from, to their end or until they die."""

from pathlib import Path

from recsys.distill.student_settings import StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.training_job import TrainingJob
from tests.support.killing import die_after
from tests.support.toy_stream import TRAIN


def run(windows: Path, scores: Path, settings: StudentsSettings, folder: Path) -> None:
    """Train the students of the toy stream into ``folder``/output, from what ``folder``/resume
    holds."""
    output = folder / "output"
    output.mkdir(parents=True, exist_ok=True)
    train_students(
        TrainingJob(windows, settings, TRAIN, output, scores_dir=scores), folder / "resume"
    )


def run_and_die(
    windows: Path, scores: Path, settings: StudentsSettings, steps: int, folder: Path
) -> None:
    """The same in a process that kills itself after ``steps`` optimiser steps."""
    die_after(steps)
    run(windows, scores, settings, folder)
