"""MLflow stores for tests."""

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory


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
