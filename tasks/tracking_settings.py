"""Settings of MLflow."""

from recsys.config import Settings


class TrackingSettings(Settings):
    """params/tracking.yaml: the MLflow tracking URI, the experiment, and where artifacts go."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "towerflow"
    artifacts: str = "mlartifacts"
