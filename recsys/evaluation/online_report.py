"""Progressive metrics of a stream: each window is measured once, when it arrives, and summarised
with all earlier ones."""

import json
import math
from itertools import groupby
from pathlib import Path
from typing import Any

from recsys.data.schema import Schema
from recsys.evaluation.metrics import LABELS, METRICS, TABLE_METRICS
from recsys.evaluation.model_table import NOT_ARMS
from recsys.evaluation.report import (
    TABLE_FILE,
    WINDOWS_FILE,
    measure_window,
    shows_tasks,
    write_windows,
)
from recsys.files import write_atomically


def evaluate_windows(
    windows_dir: Path,
    oracle_dir: Path,
    teacher_dir: Path,
    students_dir: Path,
    kept_dir: Path,
    output_dir: Path,
    scores: tuple[str, Path] | None = None,
) -> list[dict[str, Any]]:
    """Measure every student's arms, the teacher and the oracle on each window, using predictions
    made before training.

    Writes windows.csv, with one row per window and model ``<student>/<arm, teacher or oracle>`` and
    the batch report's numbers, and table.md. Keeps one window's predictions for one student in
    memory.

    Args:
        kept_dir: folder with a file per window measured before; others are measured now and stored
            there.
        scores: as in :func:`recsys.evaluation.report.evaluate`.

    Returns:
        The rows of windows.csv.

    Raises:
        InputError: there are no windows, or predictions for one are missing.
    """
    schema = Schema.load(windows_dir)
    kept_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for window in schema.windows:
        kept = kept_dir / f"{window.name}.json"
        if not kept.is_file():
            found = measure_window(window, schema, oracle_dir, teacher_dir, students_dir, scores)
            write_atomically(kept, json.dumps(found).encode())
        rows += json.loads(kept.read_text())
    write_windows(rows, output_dir / WINDOWS_FILE)
    (output_dir / TABLE_FILE).write_text(_markdown(rows))
    return rows


def mean_over_windows(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By model, the mean of each metric over the windows of one task, weighted by rows.

    Windows in which a metric is undefined (only one class of label) are left out. LogLoss equals
    that of the pooled rows; the other metrics do not.
    """
    ordered = sorted(rows, key=lambda row: row["model"])
    by_model = {model: list(own) for model, own in groupby(ordered, key=lambda row: row["model"])}
    return {
        model: {metric: _mean(own, metric) for metric in METRICS} for model, own in by_model.items()
    }


def best_arms(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Each student's arm with the lowest LogLoss for its main (first) task, over all rows so
    far."""
    losses: dict[str, dict[str, float]] = {}
    main: dict[str, str] = {}
    for row in rows:
        main.setdefault(row["model"].split("/")[0], row["task"])
    of_main = [row for row in rows if row["task"] == main[row["model"].split("/")[0]]]
    for model, means in mean_over_windows(of_main).items():
        student, arm = model.split("/")
        if arm not in NOT_ARMS:
            losses.setdefault(student, {})[arm] = means["logloss"]
    return {student: min(arms, key=lambda arm: arms[arm]) for student, arms in losses.items()}


def _mean(rows: list[dict[str, Any]], metric: str) -> float:
    # A window measured by an older version lacks newer metrics
    values = [(row["rows"], row.get(metric, math.nan)) for row in rows]
    defined = [(count, value) for count, value in values if count and math.isfinite(value)]
    total = sum(count for count, _ in defined)
    return sum(count * value for count, value in defined) / total if total else math.nan


def _markdown(rows: list[dict[str, Any]]) -> str:
    """A table with a row per model and task: the mean over all windows, and the newest window."""
    shown = ["task"] if shows_tasks(rows) else []
    headings = [
        "model",
        *shown,
        "rows",
        *(LABELS[metric] for metric in TABLE_METRICS),
        "newest window",
        "rows",
        "NE",
        "AUC",
    ]
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        newest = {row["model"]: row for row in own}
        for model, means in mean_over_windows(own).items():
            total = sum(row["rows"] for row in own if row["model"] == model)
            last = newest[model]
            cells = [
                model,
                *([task] if shown else []),
                f"{total:,}",
                *(_text(means[metric]) for metric in TABLE_METRICS),
            ]
            cells += [last["window"], f"{last['rows']:,}", _text(last["ne"]), _text(last["auc"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _text(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
