"""The registered model to serve."""

from pathlib import Path

from recsys.config import InputError
from recsys.serving.export_format import MODEL_FILE
from recsys.serving.server import Found, Source


def registered_source(student: str, alias: str) -> Source:
    """The version of towerflow-<student> with the ``alias``.

    Each call asks MLflow; a version's files are downloaded once.
    """
    name = f"towerflow-{student}"
    fetched: dict[str, Path] = {}

    def find() -> Found:
        from tasks.tracking import connect, in_one_line

        try:
            mlflow, _ = connect()
            version = mlflow.MlflowClient().get_model_version_by_alias(name, alias).version
            uri = f"models:/{name}/{version}"
            if uri not in fetched:
                fetched[uri] = Path(mlflow.artifacts.download_artifacts(uri))
        except InputError:
            raise
        except Exception as error:  # whatever MLflow raises
            raise InputError(
                f"{name}@{alias}: {in_one_line(error)}; register it first (towerflow register), or "
                f"serve an export folder"
            ) from error
        exported = next(fetched[uri].glob(f"artifacts/*/{MODEL_FILE}"), None)
        if exported is None:
            raise InputError(f"{uri}: does not contain an exported student; register it again")
        return Found(f"{name}/{version}", exported.parent)

    return find
