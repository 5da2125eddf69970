"""Settings of MLflow."""

import os
import re

from pydantic import Field, model_validator

from recsys.config import Settings

URI_VARIABLE = "MLFLOW_TRACKING_URI"
OWN_STORE = "sqlite:///mlflow.db"
USER_IN_URI = re.compile(r"(?<=://)[^/\s]+@")
PASSWORD_IN_QUERY = re.compile(r"(?i)((?:password|passwd|token)=)[^&\s]+")


class TrackingSettings(Settings):
    """Where MLflow keeps runs and models.

    Attributes:
        uri: tracking URI; null: MLFLOW_TRACKING_URI if set, otherwise a file in the project's
            folder.
        experiment: the experiment of all runs.
        artifacts: folder or URI for the artifacts of new experiments.
        wait_seconds: seconds that MLflow may take to answer, and that a run waits for it at its
            end.
        system_metrics: whether to record the machine's load while models train.
    """

    uri: str | None = None
    experiment: str = "towerflow"
    artifacts: str = "mlartifacts"
    wait_seconds: float = Field(default=10.0, gt=0)
    system_metrics: bool = True

    @model_validator(mode="after")
    def _without_credentials(self) -> "TrackingSettings":
        """A check of the whole model, because the message of a check of the key would show its
        value."""
        found = USER_IN_URI.search(self.uri or "")
        is_token = (self.uri or "").startswith("http")  # a database's user name alone is no secret
        if PASSWORD_IN_QUERY.search(self.uri or "") or (found and (is_token or ":" in found[0])):
            raise ValueError(
                "key 'uri': contains credentials, which Git and dvc.lock would keep; set it to "
                f"null and give the whole URI as {URI_VARIABLE} in the environment, or, for a "
                "server, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self

    @property
    def store(self) -> str:
        """The URI of the store."""
        return self.uri or os.environ.get(URI_VARIABLE) or OWN_STORE


def without_credentials(text: str) -> str:
    """``text`` with the user, password and token of each URI replaced by ``***``."""
    return PASSWORD_IN_QUERY.sub(r"\1***", USER_IN_URI.sub("***@", text))
