"""Whether a student may become champion, compared with the present champion on the same rows."""

import logging
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.config import load_settings
from recsys.data.schema import WEIGHT, Schema
from recsys.distill.student_settings import BudgetSettings, StudentsSettings
from recsys.evaluation.gate import Against, Limit, Verdict, decide
from recsys.evaluation.settings import EvaluateSettings
from recsys.files import in_one_line, read_json
from recsys.serving.export_format import CALIBRATION_FILE, CARD_FILE, NETWORK_FILE, WEIGHTS_FILE
from recsys.serving.publication import model_hash
from tasks.project import PARAMS, STUDENTS, WINDOWS

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger(__name__)
MODEL_TAG = "model"  # on a version: the hash of its files, without those that describe the model
JUDGED_FILE = "judged.parquet"
MEBIBYTE = 1 << 20
REPETITIONS = 20


def gated(name: str, verdict: Verdict, export: Path, judged: "pl.DataFrame | None") -> Verdict:
    """The verdict on a student's export against everything required of a champion.

    If MLflow is away, there is no champion to compare with, and the reasons say so.
    """
    settings = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    students = load_settings(PARAMS / "students.yaml", StudentsSettings).students
    budget = next((one.budget for one in students if one.name == name), BudgetSettings())
    against = None
    if judged is not None:
        try:
            against = _against_champion(name, export, judged, settings)
        except Exception as error:  # whatever MLflow raises
            logger.warning("%s: no champion to compare with: %s", name, in_one_line(error))
    return decide(verdict, settings.gate, _calibration(export), _limits(export, budget), against)


def judged_rows(name: str, arm: str) -> "pl.DataFrame | None":
    """The exported seed's predictions for its main task in the evaluation windows: example_id,
    group, event_time, label, logit and, for a weighted log, weight; None if they are not kept."""
    import polars as pl

    from recsys.evaluation.predictions import PREDICTIONS_DIR
    from recsys.evaluation.reading import tasks_of

    first = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings).first_evaluation_window
    seed = read_json(STUDENTS / name / arm / "export" / CARD_FILE).get("seed")
    folder = STUDENTS / name / arm / f"seed-{seed}"
    if not (folder / PREDICTIONS_DIR).is_dir():
        return None
    schema = Schema.load(WINDOWS)
    task = tasks_of(schema, folder)[0]
    label, logit = (schema.columns(base, [task])[0] for base in ("label", "logit"))
    files = [folder / PREDICTIONS_DIR / f"{one.name}.parquet" for one in schema.windows[first:]]
    rows = pl.concat([pl.read_parquet(file) for file in files])
    rows = rows.select(
        "example_id",
        "group",
        "event_time",
        pl.col(label).alias("label"),
        pl.col(logit).alias("logit"),
        *schema.weight_columns,
    )
    return rows.filter(pl.col("label").is_not_nan())


def known_version(client: Any, registered: str, folder: Path) -> str | None:
    """The version of a registered model that equals the export in ``folder``; None if there is
    none."""
    wanted = model_hash(folder)
    versions = client.search_model_versions(f"name='{registered}'")
    found = [int(one.version) for one in versions if one.tags.get(MODEL_TAG) == wanted]
    return str(max(found)) if found else None


def _calibration(export: Path) -> float | None:
    """Mean calibrated prediction over click rate on the last window, for the main task; None if
    unknown."""
    report = read_json(export / CALIBRATION_FILE).get("report", [])
    return report[0]["after"]["calibration"] if report else None


def _limits(export: Path, budget: BudgetSettings) -> list[Limit]:
    from recsys.serving.predictor import Predictor

    predictor = Predictor.load(export)
    memory = weights_bytes(export) / MEBIBYTE
    limits = [Limit("memory in MB", memory, budget.memory_mb)]
    rows = predictor.example_rows()
    for name, count, most in (
        ("latency of one row in ms", 1, budget.latency_ms),
        ("latency of 512 rows in ms", 512, budget.latency_512_ms),
    ):
        if most is not None and rows:
            given = [rows[place % len(rows)] for place in range(count)]
            limits.append(Limit(name, _median_ms(predictor, given), most))
    return limits


def _median_ms(predictor: Any, rows: list[dict[str, Any]]) -> float:
    seconds = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        predictor.predict_tasks(rows)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def weights_bytes(export: Path) -> int:
    """Size of the tables and the network in bytes."""
    return sum((export / name).stat().st_size for name in (WEIGHTS_FILE, NETWORK_FILE))


def _against_champion(
    name: str, export: Path, judged: "pl.DataFrame", settings: EvaluateSettings
) -> Against | None:
    import numpy as np
    import polars as pl

    from recsys.evaluation.comparison import compare
    from recsys.evaluation.resampling import blocks_of
    from tasks.tracking import connect

    mlflow, _ = connect()
    client, registered = mlflow.MlflowClient(), f"towerflow-{name}"
    known = client.search_registered_models(f"name='{registered}'")
    version = known[0].aliases.get("champion") if known else None
    if version is None or known_version(client, registered, export) == str(version):
        return None
    champion = Path(mlflow.artifacts.download_artifacts(f"models:/{registered}/{version}"))
    file = champion / "artifacts" / JUDGED_FILE
    if not file.is_file():
        return None
    before = pl.read_parquet(file).select("example_id", champion_logit="logit")
    rows = judged.join(before, on="example_id", how="inner").sort("event_time", "example_id")
    if rows.is_empty():
        return None
    groups, times = rows["group"].to_numpy(), rows["event_time"].to_numpy()
    found = compare(
        [rows["champion_logit"].to_numpy()],
        [rows["logit"].to_numpy()],
        rows["label"].to_numpy(),
        groups,
        settings.bootstrap_samples,
        settings.confidence,
        settings.seed,
        blocks_of(settings.blocks, groups, times, np.zeros(len(groups), np.int64)),
        rows[WEIGHT].to_numpy() if WEIGHT in rows.columns else None,
    )
    ne = next(one for one in found if one.metric == "ne")
    smaller = weights_bytes(export) < weights_bytes(next(champion.glob("artifacts/*/")))
    label = f"champion version {version}"
    return Against(label, rows.height, ne.first, ne.difference, ne.low, ne.high, smaller)
