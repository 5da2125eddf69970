"""Made-up predictions of a teacher and students, and the report on them."""

from pathlib import Path

from recsys.data.schema import Window
from recsys.evaluation.report import Report, evaluate
from recsys.evaluation.settings import EvaluateSettings

ROWS = 600
WINDOWS = [Window(f"w{i}", 100 * i, 100 * (i + 1), ROWS, 0) for i in range(3)]
SETTINGS = EvaluateSettings(first_evaluation_window=1, bootstrap_samples=30, confidence=0.9, seed=1)


def run(root: Path, output: str, settings: EvaluateSettings = SETTINGS) -> Report:
    return evaluate(
        root / "windows",
        root / "oracle",
        root / "teacher",
        root / "students",
        settings,
        root / output,
        root / "baselines",
    )
