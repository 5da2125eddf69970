"""The MLflow model of a student: raw columns in, probabilities out."""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from recsys.serving.predictor import Predictor


class ServedStudent(PythonModel):
    """Wraps the predictor of recsys.serving; loads safetensors and JSON, no pickle."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the exported student."""
        self.predictor = Predictor.load(Path(context.artifacts["student"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> Any:
        """Probabilities [N] for a frame of raw columns; a frame with one column per task for
        several tasks."""
        return probabilities(self.predictor, model_input)


def probabilities(predictor: Predictor, rows: pd.DataFrame) -> Any:
    """Probabilities [N] for ``rows``; a frame with one column per task for several tasks."""
    found = predictor.predict_tasks(rows)
    return pd.DataFrame(found) if len(found) > 1 else next(iter(found.values()))


set_model(ServedStudent())
