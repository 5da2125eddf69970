"""Settings of MLflow."""

import re

from recsys.config import Settings

USER_IN_URI = re.compile(r"(?<=://)[^/\s]+@")
PASSWORD_IN_QUERY = re.compile(r"(?i)((?:password|passwd|token)=)[^&\s]+")


class TrackingSettings(Settings):
    """params/tracking.yaml: the MLflow tracking URI, the experiment, and where artifacts go."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "towerflow"
    artifacts: str = "mlartifacts"


def without_credentials(text: str) -> str:
    """``text`` with the user, password and token of each URI in it as ``***``."""
    return PASSWORD_IN_QUERY.sub(r"\1***", USER_IN_URI.sub("***@", text))
