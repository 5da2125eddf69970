"""Score many files, one Prefect task per file."""

from pathlib import Path

from prefect import flow, task

from recsys.config import InputError
from recsys.serving.predictor import Predictor
from recsys.serving.scoring import score_file


@task(task_run_name="score {source}")
def score_one(export: Path, source: Path, target: Path, keep: list[str]) -> int:
    """See :func:`recsys.serving.scoring.score_file`."""
    return score_file(Predictor.load(export), source, target, keep)


@flow(name="score")
def score(export: Path, files: list[Path], output: Path, keep: list[str]) -> list[int]:
    """Score each of ``files`` and return the number of rows in each.

    Raises:
        InputError: a file is wrong, or two have the same name.
    """
    names = [file.name for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: two files have this name; score them into folders of their own")
    output.mkdir(parents=True, exist_ok=True)
    running = [score_one.submit(export, file, output / file.name, keep) for file in files]
    return [one.result() for one in running]
