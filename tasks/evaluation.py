"""Predictions to a report: students against themselves without a teacher."""

import math
from typing import TYPE_CHECKING

from prefect import task

from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.evaluation.settings import EvaluateSettings
from tasks.project import EVALUATION, ORACLE, PARAMS, STUDENTS, TEACHER, WINDOWS, replacing, require
from tasks.tracking import RunRecord, flatten, record
from tasks.versioning import output_version

if TYPE_CHECKING:
    from recsys.evaluation.report import Report


@task
def evaluate_students() -> None:
    """Compare every student with and without distillation and write reports/evaluation."""
    from recsys.evaluation.report import evaluate

    require(WINDOWS, TEACHER, STUDENTS)
    settings = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    with replacing(EVALUATION) as (output,):
        report = evaluate(WINDOWS, ORACLE, TEACHER, STUDENTS, settings, output)
    record(
        RunRecord(
            name="comparison",
            kind="comparison",
            parameters=flatten(settings),
            data_version=output_version(WINDOWS),
            dataset=Schema.load(WINDOWS).dataset,
            metrics=_headline(report),
            tags={"students_version": output_version(STUDENTS)},
            artifacts={str(EVALUATION): "evaluation"},
        )
    )


def _headline(report: "Report") -> dict[str, float]:
    """The report's numbers as MLflow metrics: ``feed/ne/distilled`` and so on."""
    metrics = {}
    for row in report.metrics:
        one, key = row.comparison, f"{row.student}/{row.comparison.metric}"
        metrics |= {f"{key}/plain": one.first, f"{key}/distilled": one.second, f"{key}/difference": one.difference}
        metrics |= {f"{key}/low": one.low, f"{key}/high": one.high, f"{key}/teacher": row.teacher}
        if row.oracle is not None:
            metrics[f"{key}/oracle"] = row.oracle
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
