"""The evaluate stage: whether a student is better with a teacher than without, by how much, and how
certainly."""

import csv
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.schema import MAIN_TASK, Schema, Window
from recsys.evaluation.calibration_curve import calibration_rows
from recsys.evaluation.coldness import rows_seen
from recsys.evaluation.comparison import Comparison, compare_values, holm, interval, p_text, p_value
from recsys.evaluation.figures import (
    draw_calibration,
    draw_differences,
    draw_gains,
    draw_windows,
)
from recsys.evaluation.gate import Verdict, judge
from recsys.evaluation.metrics import LABELS, METRICS, TABLE_METRICS
from recsys.evaluation.model_table import (
    DISTILLED,
    ORACLE,
    PLAIN,
    SCORERS,
    TEACHER,
    ModelRow,
    in_words,
    model_table,
)
from recsys.evaluation.printed import TABLE_FILE, number
from recsys.evaluation.reading import (
    Predictions,
    common_arms,
    common_seeds,
    over_seeds,
    read_predictions,
    tasks_of,
)
from recsys.evaluation.resampling import blocks_of, resample
from recsys.evaluation.settings import EvaluateSettings, check_evaluated
from recsys.evaluation.slices import measure_slices, slices_of
from recsys.evaluation.threads import threads
from recsys.evaluation.web_report import web_page
from recsys.files import write_json
from recsys.progress import RowProgress

WINDOWS_FILE = "windows.csv"


@dataclass(frozen=True)
class MetricRow:
    """One student, task, arm and metric over the evaluation windows; the comparison is between
    plain and the arm.

    Only rows with the task's label count. ``teacher`` and ``oracle`` (the generated stream's true
    probabilities) are measured on the same rows; ``oracle`` is None for real logs.
    """

    student: str
    task: str
    arm: str
    comparison: Comparison
    teacher: float
    oracle: float | None


@dataclass(frozen=True)
class Report:
    """The results of evaluate. ``arms`` are those besides plain. ``windows`` has the rows of
    windows.csv, one per model, task and window. ``models`` has every model of each student and
    task, ``verdicts`` whether each student may be served. ``slices`` has the main task's results by
    student, kind and slice, from :func:`recsys.evaluation.slices.measure_slices`, and
    ``calibration`` the rows of calibration.csv.

    ``tasks`` lists each student's tasks, the main one first; ``rows_by_student`` counts the main
    task's rows.
    """

    first_window: str
    rows_by_student: dict[str, int]
    seeds: list[int]
    arms: list[str]
    tasks: dict[str, list[str]]
    metrics: list[MetricRow]
    models: list[ModelRow]
    verdicts: dict[str, Verdict]
    windows: list[dict[str, Any]]
    slices: dict[str, dict[str, Any]]
    calibration: list[dict[str, Any]]

    @property
    def shows_tasks(self) -> bool:
        """Whether there is more than one task."""
        return shows_tasks(self.windows)

    def is_main(self, student: str, task: str) -> bool:
        """Whether ``task`` is the main one of ``student``."""
        return self.tasks[student][0] == task


def evaluate(
    windows_dir: Path,
    oracle_dir: Path,
    teacher_dir: Path,
    students_dir: Path,
    settings: EvaluateSettings,
    output_dir: Path,
    baselines_dir: Path | None = None,
    scores: tuple[str, Path] | None = None,
) -> Report:
    """Compare every arm of every student with the plain one, on the pooled rows of the evaluation
    windows.

    Writes report.json, metrics.json (a summary), table.md, windows.csv, calibration.csv,
    figures/*.png and report.html, which contains tables and figures, to ``output_dir``.

    Args:
        baselines_dir: baselines for the data's main task, listed with each student that predicts
            it; None: there are none.
        scores: the source of the students' scores (a key of SCORERS) and their log, if it is not
            the teacher alone; it is then listed beside the teacher.

    Raises:
        InputError: there are no students, arms have different seeds, predictions are missing, or no
            window is left.
    """
    schema = Schema.load(windows_dir)
    check_evaluated(settings, len(schema.windows))
    students = sorted(path.name for path in students_dir.glob("*") if (path / PLAIN).is_dir())
    if not students:
        raise InputError(
            f"{students_dir}: no students; run the students stage first (towerflow students)"
        )
    arms = common_arms(students_dir, students)
    seeds = common_seeds(students_dir, students, arms)
    metrics: list[MetricRow] = []
    models: list[ModelRow] = []
    window_rows: list[dict[str, Any]] = []
    rows_by_student: dict[str, int] = {}
    slices: dict[str, dict[str, Any]] = {}
    calibrated: list[dict[str, Any]] = []
    tasks = {
        student: tasks_of(schema, students_dir / student / PLAIN / f"seed-{seeds[0]}")
        for student in students
    }
    coldness = rows_seen(schema, windows_dir)
    for student, task in [(name, task) for name in students for task in tasks[name]]:
        of_main_task = baselines_dir if task == schema.tasks[0] else None
        predictions = read_predictions(
            schema,
            task,
            oracle_dir,
            teacher_dir,
            students_dir / student,
            arms,
            seeds,
            of_main_task,
            scores,
            coldness,
        )
        evaluated = predictions.select(predictions.window >= settings.first_evaluation_window)
        compared = _compare(student, task, arms, evaluated, settings)
        metrics += compared[0]
        models += compared[1]
        window_rows += _by_window(student, task, predictions, schema.windows)
        if student not in slices:  # the main task's
            rows_by_student[student] = len(evaluated.labels)
            slices[student] = _by_slice(evaluated, schema, settings)
            calibrated += calibration_rows(student, evaluated)
    first = schema.windows[settings.first_evaluation_window].name
    metrics, models = _corrected(metrics, models)
    verdicts = {
        student: judge(
            [row for row in models if (row.student, row.task) == (student, own[0])], settings.gate
        )
        for student, own in tasks.items()
    }
    report = Report(
        first,
        rows_by_student,
        seeds,
        arms,
        tasks,
        metrics,
        models,
        verdicts,
        window_rows,
        slices,
        calibrated,
    )
    _write(report, output_dir)
    return report


def _compare(
    student: str, task: str, arms: list[str], evaluated: Predictions, settings: EvaluateSettings
) -> tuple[list[MetricRow], list[ModelRow]]:
    """Every arm's metrics and every model's NE against plain, under the same draws; the simplest
    models come first."""
    arrays = sum(len(seeds) for seeds in evaluated.logits.values())
    rows, name = len(evaluated.labels), student if task == MAIN_TASK else f"{student} {task}"
    with (
        RowProgress(f"evaluate {name}", arrays * rows) as progress,
        threads() as pool,
    ):
        progress.note(
            f"{rows:,} rows, {len(evaluated.logits)} models, {arrays} predictions of each"
        )
        measured = evaluated.metrics(pool)
        drawn = resample(
            evaluated.logits,
            evaluated.labels,
            evaluated.groups,
            settings.bootstrap_samples,
            settings.seed,
            None if settings.blocks == "group" else _blocks(evaluated, settings),
            {PLAIN, *arms},
            progress.advance,
            evaluated.weights,
        )
    found = {model: over_seeds(values) for model, values in measured.items()}
    teacher = found[next((one for one in SCORERS.values() if one in found), TEACHER)]
    oracle = found.get(ORACLE, {})
    metrics = [
        MetricRow(student, task, arm, one, teacher[one.metric], oracle.get(one.metric))
        for arm in arms
        for one in compare_values(
            measured[PLAIN], measured[arm], drawn[arm] - drawn[PLAIN], settings.confidence
        )
    ]
    models, tail = [], (1.0 - settings.confidence) / 2
    for model, values in found.items():
        difference = values["ne"] - found[PLAIN]["ne"]
        drawn_ne = (drawn[model] - drawn[PLAIN])[:, METRICS.index("ne")]
        p = math.nan if model == PLAIN else p_value(difference, drawn_ne)
        models.append(
            ModelRow(student, task, model, values, difference, *interval(drawn_ne, tail), p)
        )
    return metrics, models


def _blocks(predictions: Predictions, settings: EvaluateSettings) -> NDArray[np.integer]:
    """The bootstrap's block of each row."""
    one = predictions
    return blocks_of(settings.blocks, one.groups, one.event_time, one.window)


def _by_slice(
    evaluated: Predictions, schema: Schema, settings: EvaluateSettings
) -> dict[str, dict[str, Any]]:
    windows = [window.name for window in schema.windows]
    return measure_slices(
        evaluated,
        slices_of(evaluated, schema.domains, windows),
        PLAIN,
        _blocks(evaluated, settings),
        settings.bootstrap_samples,
        settings.confidence,
        settings.seed,
    )


def _corrected(
    metrics: list[MetricRow], models: list[ModelRow]
) -> tuple[list[MetricRow], list[ModelRow]]:
    """The rows with p values corrected for their whole table."""
    of_metrics = holm([row.comparison.p for row in metrics])
    of_models = holm([row.p for row in models])
    return (
        [
            replace(row, comparison=replace(row.comparison, p_holm=p))
            for row, p in zip(metrics, of_metrics, strict=True)
        ],
        [replace(row, p_holm=p) for row, p in zip(models, of_models, strict=True)],
    )


def _by_window(
    student: str, task: str, predictions: Predictions, windows: list[Window]
) -> list[dict[str, Any]]:
    rows = []
    with threads() as pool:
        for index, window in enumerate(windows):
            part = predictions.select(predictions.window == index)
            for model, values in part.metrics(pool).items():
                own = {
                    "model": f"{student}/{model}",
                    "task": task,
                    "window": window.name,
                    "rows": len(part.labels),
                }
                rows.append(own | over_seeds(values))
    return rows


def _write(report: Report, output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "report.json", _as_json(report))
    (output_dir / TABLE_FILE).write_text(
        "\n".join([_markdown(report), model_table(report.models), _sentences(report)])
    )
    write_windows(report.windows, output_dir / WINDOWS_FILE)
    write_json(output_dir / "metrics.json", _in_short(report))
    with (output_dir / "calibration.csv").open("w", newline="") as file:
        names = ["model", "bin", "rows", "predicted", "observed"]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(report.calibration)
    figures = output_dir / "figures"
    figures.mkdir(exist_ok=True)
    for student, task in [(name, task) for name, tasks in report.tasks.items() for task in tasks]:
        rows = [
            row
            for row in report.windows
            if row["model"].startswith(f"{student}/") and row["task"] == task
        ]
        name = student if report.is_main(student, task) else f"{student}_{task}"
        draw_windows(student, rows, figures / f"ne_{name}.png")
    arm = report.arms[0] if len(report.arms) == 1 else "arm"
    differences = [(": ".join(_names(row, report)), row.comparison) for row in report.metrics]
    draw_differences(differences, arm, figures / "differences.png")
    (output_dir / "report.html").write_text(_web_page(report, figures))


def _in_short(report: Report) -> dict[str, Any]:
    """NE and AUC of each student's arms and of the teacher; and for each arm its NE minus plain's,
    in % of plain's, and its share of the teacher's gain over plain."""
    found: dict[str, Any] = {}
    for student, tasks in report.tasks.items():
        rows = {
            row.model: row
            for row in report.models
            if (row.student, row.task) == (student, tasks[0])
        }
        own = found[student] = {
            model: {"ne": rows[model].metrics["ne"], "auc": rows[model].metrics["auc"]}
            for model in (PLAIN, *report.arms, TEACHER)
        }
        gain_of_teacher = rows[TEACHER].difference
        for arm in report.arms:
            own[arm]["ne_change_percent"] = 100 * rows[arm].difference / own[PLAIN]["ne"]
            if gain_of_teacher < 0:
                own[arm]["transfer"] = rows[arm].difference / gain_of_teacher
    return found


def _web_page(report: Report, figures: Path) -> str:
    """The text of report.html; also draws the figures that only this page has."""
    models, drawn = {}, {}
    for student, tasks in report.tasks.items():
        models[student] = [
            row for row in report.models if (row.student, row.task) == (student, tasks[0])
        ]
        drawn[student] = {
            what: figures / f"{what}_{student}.png" for what in ("ne", "calibration", "gain")
        }
        rows = [row for row in report.calibration if row["model"].startswith(f"{student}/")]
        draw_calibration(student, rows, drawn[student]["calibration"])
        shown = [*report.arms, TEACHER]
        draw_gains(student, report.slices[student], shown, drawn[student]["gain"])
        drawn[student] = {what: path for what, path in drawn[student].items() if path.is_file()}
    counted = ", ".join(f"{name} {rows:,}" for name, rows in report.rows_by_student.items())
    judged = (
        f"All models on the same rows, predicted before training on them: windows from "
        f"{report.first_window} on; rows: {counted}; training seeds: {len(report.seeds)}."
    )
    refusals = {name: one.why for name, one in report.verdicts.items() if not one.passes}
    return web_page("Students, teacher and baselines", judged, models, refusals, drawn)


def _sentences(report: Report) -> str:
    """A summary of each student's main task in words, one line per student."""
    lines = []
    for student, tasks in report.tasks.items():
        rows = [row for row in report.models if (row.student, row.task) == (student, tasks[0])]
        verdict = report.verdicts[student]
        lines.append(f"- {in_words(rows)}\n")
        if not verdict.passes:
            lines.append(f"- **{student} may not be served as champion: {verdict.why}.**\n")
    return "".join(lines)


def shows_tasks(rows: list[dict[str, Any]]) -> bool:
    """Whether ``rows`` of windows.csv contain more than one task."""
    return len({row["task"] for row in rows}) > 1


def write_windows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write windows.csv, with a task column if there are several."""
    with path.open("w", newline="") as file:
        names = ["model", *(["task"] if shows_tasks(rows) else []), "window", "rows", *METRICS]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _as_json(report: Report) -> dict[str, Any]:
    """The report as JSON: per student and metric, each arm's value and the first arm's difference;
    ``comparisons`` has every arm's.

    Both cover the main task; ``further_tasks`` has the others, by student, task, arm and metric.
    ``models`` has every model of the main task, including baselines, by student, model and metric.
    """
    students: dict[str, dict[str, Any]] = {}
    comparisons: dict[str, dict[str, dict[str, Any]]] = {}
    further: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for row in report.metrics:
        one = {**asdict(row.comparison), "teacher": row.teacher, "oracle": row.oracle}
        one[PLAIN], one[row.arm] = one.pop("first"), one.pop("second")
        metric = one.pop("metric")
        if not report.is_main(row.student, row.task):
            further.setdefault(row.student, {}).setdefault(row.task, {}).setdefault(row.arm, {})[
                metric
            ] = one
            continue
        students.setdefault(row.student, {}).setdefault(metric, one)[row.arm] = one[row.arm]
        comparisons.setdefault(row.student, {}).setdefault(row.arm, {})[metric] = dict(one)
    found = {
        "first_window": report.first_window,
        "rows": report.rows_by_student,
        "seeds": report.seeds,
        "students": students,
        "models": {
            student: {
                row.model: row.as_json()
                for row in report.models
                if (row.student, row.task) == (student, tasks[0])
            }
            for student, tasks in report.tasks.items()
        },
    }
    found["comparisons_made"] = {
        "metrics": sum(not math.isnan(row.comparison.p) for row in report.metrics),
        "models": sum(not math.isnan(row.p) for row in report.models),
    }
    found["slices"] = report.slices
    found["verdicts"] = {name: verdict.as_json() for name, verdict in report.verdicts.items()}
    found |= {} if report.arms == [DISTILLED] else {"comparisons": comparisons}
    return found | ({"tasks": report.tasks, "further_tasks": further} if report.shows_tasks else {})


def _names(row: MetricRow, report: Report) -> list[str]:
    """The student's name, with arm and task if there are several."""
    student = row.student if len(report.arms) == 1 else f"{row.student}: {row.arm}"
    return [student, row.task] if report.shows_tasks else [student]


def _markdown(report: Report) -> str:
    arm = report.arms[0] if len(report.arms) == 1 else "arm"
    texts = ["student", *(["task"] if report.shows_tasks else []), "metric"]
    numbers = [PLAIN, arm, "difference", "low", "high", "p (Holm)", "teacher", "oracle"]
    lines = [
        f"| {' | '.join(texts + numbers)} |",
        "|---" * len(texts) + "|" + "---:|" * len(numbers),
    ]
    lines += [
        f"| {' | '.join([*_names(row, report), *_cells(row)])} |"
        for row in report.metrics
        if row.comparison.metric in TABLE_METRICS
    ]
    return "\n".join(lines) + "\n"


def _cells(row: MetricRow) -> list[str]:
    """The row's values as text; an undefined value (gAUC in a log without groups) is a dash."""
    one = row.comparison
    oracle = "" if row.oracle is None else number(row.oracle, ".4f")
    signed = [number(value, "+.5f") for value in (one.difference, one.low, one.high)]
    return [
        LABELS[one.metric],
        number(one.first, ".4f"),
        number(one.second, ".4f"),
        *signed,
        p_text(one.p_holm),
        number(row.teacher, ".4f"),
        oracle,
    ]


def measure_window(
    window: Window,
    schema: Schema,
    oracle_dir: Path,
    teacher_dir: Path,
    students_dir: Path,
    scores: tuple[str, Path] | None = None,
) -> list[dict[str, Any]]:
    """The rows of windows.csv for one window: each student's arms, the teacher, the other source of
    scores (as in :func:`evaluate`) and the oracle on the student's rows.

    Raises:
        InputError: predictions are missing.
    """
    rows = []
    only = replace(schema, windows=[window])
    for student in sorted(path for path in students_dir.glob("*") if (path / PLAIN).is_dir()):
        arms = sorted(path.name for path in student.glob("*/") if path.name != PLAIN)
        seeds = sorted(
            int(path.name.removeprefix("seed-")) for path in (student / PLAIN).glob("seed-*")
        )
        for task in tasks_of(only, student / PLAIN / f"seed-{seeds[0]}"):
            predictions = read_predictions(
                only, task, oracle_dir, teacher_dir, student, arms, seeds, scores=scores
            )
            rows += _by_window(student.name, task, predictions, [window])
    return rows
