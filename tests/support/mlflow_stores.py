"""MLflow stores for tests."""

import os
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

WAIT_SECONDS = 120


def wait_until_delivered(project: Path) -> None:
    """Wait for the process that gives MLflow what the project's commands have recorded."""
    end = time.monotonic() + WAIT_SECONDS
    while any(project.glob(".tracking/*/record.json")):
        assert time.monotonic() < end, (project / ".tracking/courier.log").read_text()
        time.sleep(0.1)


@cache
def empty_store() -> bytes:
    """The file of a sqlite store without runs; MLflow takes 5 s to make one."""
    import mlflow

    with TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        mlflow.set_tracking_uri(f"sqlite:///{path}")
        # MLflow writes the URI there, where it would pass for the user's own
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        mlflow.get_experiment_by_name("none")
        return path.read_bytes()
