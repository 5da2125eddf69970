"""Stages of a project that are run in the test's own process."""

import subprocess
import sys
from typing import Any

from tasks.code import write_code
from tasks.courier import sending


def run_stages(*stages: Any) -> None:
    """Run the flows of stages of the project in this folder, one after the other, and let DVC know
    their outputs: without Prefect, and with one process each for MLflow and DVC."""
    write_code()
    with sending():
        for stage in stages:
            stage.fn()
    names = [stage.name for stage in stages]
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", "code", *names]
    subprocess.run(command, check=True)
