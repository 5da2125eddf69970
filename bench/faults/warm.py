"""Commands of the project in processes forked from one that has imported everything.

Each such process does what the command does, for its work alone: imports, ten seconds per process,
are paid once. The server that its ranks are forked from is forked likewise: a process of its own, a
child of the command's, as it is elsewhere.
"""

import os
import sys
import tempfile
import traceback
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

# What commands import as they run, DVC's too
import dulwich.client  # noqa: F401
import dvc.cli.parser
import dvc.repo.checkout
import dvc.repo.commit
import dvc.repo.status  # noqa: F401
import dvc_data.hashfile.db.local
import dvc_data.hashfile.state  # noqa: F401
import k_means_constrained  # noqa: F401
import mlflow.pyfunc  # noqa: F401

import recsys.baselines.training
import recsys.distill.students
import recsys.distill.teacher
import recsys.evaluation.report
import recsys.towers.probe  # noqa: F401
from flows.augment import augment
from flows.baselines import baselines
from flows.command_line import exit_status
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.partition import partition
from flows.register import register
from flows.stream import stream
from flows.students import students
from flows.teacher import teacher
from recsys import provenance
from tasks import tracking, versioning
from tasks.checks import check_before, check_settings_and_data
from tasks.code import CALLERS
from tasks.project import alone
from tests.support import warm  # noqa: F401 (what each process would work out anew)
from tests.support.forked_server import fork_the_server

STAGES = (ingest, baselines, partition, teacher, augment, students, evaluate, register)
NAMES = tuple(stage.name for stage in STAGES)
STREAM = stream.name
TEMPORARY = "tmp"  # TMPDIR of a command, in its project

# What a module's text means does not hang on where it lies: each is parsed here, once for all
# copies of the project
_parse = provenance._parsed
provenance._parsed = lambda path, content: _parse(Path(path.name), content)  # type: ignore[assignment]
for one in (*NAMES, STREAM):
    provenance.code_of(f"flows.{one}", callers=CALLERS)


def up_to(last: str) -> None:
    """The stages up to ``last`` that are not up to date, in order, as ``towerflow run`` does
    without a Prefect server, and as ``dvc repro`` runs them."""
    names = NAMES[: NAMES.index(last) + 1]
    with alone("running the pipeline"):
        check_before(ingest.name)
        stale = versioning.settled_stages(*names)
        for stage in STAGES:
            if stage.name in stale:
                stage.fn()
                versioning.commit_stage(stage.name)
                later = names[names.index(stage.name) + 1 :]
                stale = versioning.stale_stages(*later) if later else set()
            if stage is ingest:
                check_settings_and_data()


def start(work: str, folder: Path) -> int:
    """Begin ``work``, the pipeline up to a stage or the stream, in the project in ``folder``; its
    output is added to output.txt there. The id of its process."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_work, args=(work, folder))
    process.start()
    assert process.pid is not None
    return process.pid


def _work(work: str, folder: Path) -> NoReturn:
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, descriptor)
    temporary = folder / TEMPORARY
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None
    fork_the_server()
    status = 1
    try:
        # What is recorded waits in .tracking: to import MLflow takes the courier five seconds
        with tracking.by_courier():
            status = exit_status(stream.fn if work == STREAM else lambda: up_to(work))
    except BaseException:
        traceback.print_exc()
    print(f"status {status}", flush=True)
    sys.exit(status)
