"""Predictions to a report that compares students with their plain selves and with baselines."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.distill.augment_settings import AugmentSettings
from recsys.evaluation.settings import EvaluateSettings
from recsys.towers.settings import TowersSettings
from tasks.probe_check import check_probe_is_past
from tasks.project import (
    BASELINES,
    EVALUATION,
    ORACLE,
    PARAMS,
    SCORES,
    STUDENTS,
    TEACHER,
    WINDOWS,
    replacing,
    require,
)
from tasks.shown import show_report
from tasks.tracking import RunRecord, flat, open_run, record
from tasks.versioning import output_version, used_parameters

if TYPE_CHECKING:
    from recsys.evaluation.report import Report


@task(task_run_name="compare the models", tags=["evaluation"])
def evaluate_students() -> None:
    """Compare every student with and without distillation and write reports/evaluation."""
    from recsys.evaluation.report import evaluate

    require(WINDOWS, BASELINES, TEACHER, SCORES, STUDENTS, *([ORACLE] if ORACLE.is_dir() else []))
    settings = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    check_probe_is_past(load_settings(PARAMS / "towers.yaml", TowersSettings), settings)
    comparison = RunRecord(
        name="comparison",
        kind="comparison",
        # The settings of all stages, as dvc.lock recorded them
        parameters=dict(flat(used_parameters() | {"evaluate": settings.model_dump(mode="json")})),
        data_version=output_version(WINDOWS),
        dataset=Schema.load(WINDOWS).dataset,
        tags={"students_version": output_version(STUDENTS)},
        description=(
            "All models on the same rows, before any of them trained on them. Select the runs "
            "below it and press *Compare*; `evaluation/report.html` has the tables and figures."
        ),
    )
    with open_run(comparison):
        with replacing(EVALUATION) as (output,):
            report = evaluate(
                WINDOWS, ORACLE, TEACHER, STUDENTS, settings, output, BASELINES, _scores_beside()
            )
        for model in sorted({row["model"] for row in report.windows}):
            _record_model(report, model, comparison)
        show_report(EVALUATION)
        comparison.metrics = _headline(report)
        comparison.artifacts = {str(EVALUATION): "evaluation"}


def _scores_beside() -> tuple[str, Path] | None:
    """The name and log of the scores that students learn from; None if they are the teacher's
    alone."""
    teacher = load_settings(PARAMS / "augment.yaml", AugmentSettings).teacher
    return None if teacher == "own" else (teacher, SCORES)


def _record_model(report: "Report", model: str, comparison: RunRecord) -> None:
    """Record one MLflow run per student and model (baselines, arms, teacher, oracle) on the same
    rows, for comparison side by side."""
    student, arm = model.split("/")
    values: dict[str, float] = {}
    curves: dict[str, list[float | None]] = {}
    for row in report.models:
        if (row.student, row.model) != (student, arm):
            continue
        ending = "" if report.is_main(student, row.task) else f"_{row.task}"
        windows = [
            one for one in report.windows if one["model"] == model and one["task"] == row.task
        ]
        for metric, value in row.metrics.items():
            values[metric + ending] = value
            curves[f"window/{metric}{ending}"] = [one[metric] for one in windows]
    values |= _gains(report.slices[student], arm)
    observed = [row["observed"] for row in report.calibration if row["model"] == model]
    if observed:
        predicted = [row["predicted"] for row in report.calibration if row["model"] == model]
        curves |= {"calibration/predicted": predicted, "calibration/observed": observed}
    record(
        RunRecord(
            name=f"{student}: {arm}",
            kind="evaluation",
            parameters=comparison.parameters | {"student": student, "arm": arm},
            data_version=comparison.data_version,
            dataset=comparison.dataset,
            metrics={f"eval/{metric}": value for metric, value in values.items()},
            curves=curves,
            tags={"student": student, "arm": arm, **comparison.tags},
            artifacts={str(EVALUATION / "figures" / f"ne_{student}.png"): "figures"},
            started_ms=comparison.started_ms,
        )
    )


def _gains(slices: dict[str, dict[str, Any]], arm: str) -> dict[str, float]:
    """The NE by which ``arm`` is below plain, in % of plain's NE, by domain and by how cold an
    example is."""
    gains = {}
    for kind in ("domain", "coldness"):
        for name, values in slices.get(kind, {}).items():
            own, plain = values["models"][arm], values["models"]["plain"]
            gain = -100 * own.get("difference", 0.0) / plain["ne"]
            if math.isfinite(gain):
                gains[f"gain_percent/{kind} {name}"] = gain
    return gains


def _headline(report: "Report") -> dict[str, float]:
    """The differences arm - plain as MLflow metrics: ``feed/ne/difference``, its ``low`` and
    ``high``.

    With several arms ``feed/<arm>/ne/difference``; for a further task
    ``feed/<task>/ne/difference``.
    """
    metrics = {}
    for row in report.metrics:
        student = row.student if len(report.arms) == 1 else f"{row.student}/{row.arm}"
        student = student if report.is_main(row.student, row.task) else f"{student}/{row.task}"
        one, key = row.comparison, f"{student}/{row.comparison.metric}"
        metrics |= {
            f"{key}/difference": one.difference,
            f"{key}/low": one.low,
            f"{key}/high": one.high,
        }
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
