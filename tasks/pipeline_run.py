"""The parent MLflow run of one pipeline run, whichever command started it."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from recsys.config import read_yaml
from tasks.courier import sending
from tasks.project import EVALUATION, PARAMS, REGISTRATION, WINDOWS
from tasks.tracking import RunRecord, flat, open_parent, open_run
from tasks.versioning import output_hashes, output_version

# Files of params/. Importing the settings classes would make every stage depend on all of them.
OF_NO_RESULT = {"tracking", "prefect", "stream", "tune", "teacher_ladder"}


@contextmanager
def pipeline_run(door: str) -> Iterator[None]:
    """An MLflow run around all stages, with the settings and, at the end, DVC's hash of each
    output."""
    with sending(), open_run(_pipeline(door)) as run:
        yield
        run.tags = {**run.tags, **{f"dvc/{path}": md5 for path, md5 in output_hashes().items()}}
        run.data_version = output_version(WINDOWS)
        run.artifacts = {str(EVALUATION / "report.html"): "", str(REGISTRATION): ""}


@contextmanager
def stage_run() -> Iterator[None]:
    """Set up MLflow around a stage: the courier and, if ``dvc`` started the stage, the parent run
    of all stages that this ``dvc`` starts."""
    dvc = None if open_parent() else _dvc_above()
    with sending():
        if dvc is None:
            yield
            return
        run = _pipeline("dvc")
        run.key = f"dvc-{dvc.pid}-{dvc.create_time():.0f}"
        run.started_ms = int(1000 * dvc.create_time())
        with open_run(run):
            yield


def _pipeline(door: str) -> RunRecord:
    files = {
        path.stem: read_yaml(path.read_text(), str(path))
        for path in sorted(PARAMS.glob("*.yaml"))
        if path.stem not in OF_NO_RESULT
    }
    dataset = str(files["data"]["dataset"])
    names = " and ".join(str(student["name"]) for student in files["students"]["students"])
    return RunRecord(
        name=f"{door}: {dataset}, students {names}",
        kind="pipeline",
        parameters=dict(flat(files)),
        data_version=output_version(WINDOWS),
        dataset=dataset,
        description=(
            f"One run of the pipeline on **{dataset}**, for the students **{names}**. Below it: a "
            "run of each stage, and under those of each model. The result is in the run "
            "*comparison*: all models on the same rows, and `evaluation/report.html`."
        ),
    )


def _dvc_above() -> psutil.Process | None:
    """The ``dvc`` process that started this one; None if there is none."""
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(word == "dvc" or word.endswith("/dvc") for word in words[:3]):
            return process
    return None
